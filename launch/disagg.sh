#!/bin/sh
# A sidecar, Dynamo's frontend, decode and prefill workers. See --help.
exec "$(dirname -- "$(readlink -f -- "$0")")/run.sh" disagg "$@"
