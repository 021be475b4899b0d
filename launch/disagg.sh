#!/bin/sh
# A sidecar, Dynamo's frontend, decode and prefill workers. See --help.
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")
. "$here/python.sh"
exec "$python" "$here/__main__.py" disagg "$@"
