#!/bin/sh
# The programs of a running stack, their health and ports, and the hit rate. See --help.
exec "$(dirname -- "$(readlink -f -- "$0")")/run.sh" status "$@"
