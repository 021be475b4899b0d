#!/bin/sh
# A sidecar, Dynamo's frontend and workers that do both phases. See --help.
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")
. "$here/python.sh"
exec "$python" "$here/__main__.py" agg "$@"
