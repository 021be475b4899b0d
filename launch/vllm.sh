#!/bin/sh
# A sidecar and plain vllm serve. See --help.
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")
. "$here/python.sh"
exec "$python" "$here/__main__.py" vllm "$@"
