#!/bin/sh
# A sidecar, Dynamo's frontend and workers that do both phases. See --help.
exec "$(dirname -- "$(readlink -f -- "$0")")/run.sh" agg "$@"
