#!/bin/sh
# The programs of a running stack, their health and ports, and the hit rate. See --help.
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")
. "$here/python.sh"
exec "$python" "$here/__main__.py" status "$@"
