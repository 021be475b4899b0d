#!/bin/sh
# End a stack that runs in another terminal. See --help.
exec "$(dirname -- "$(readlink -f -- "$0")")/run.sh" stop "$@"
