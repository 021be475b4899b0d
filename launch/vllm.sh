#!/bin/sh
# A sidecar and plain vllm serve. See --help.
exec "$(dirname -- "$(readlink -f -- "$0")")/run.sh" vllm "$@"
