#!/bin/sh
# End a stack that runs in another terminal. See --help.
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")
. "$here/python.sh"
exec "$python" "$here/__main__.py" stop "$@"
