#!/bin/sh
# Runs a command of the launchers with the interpreter that has kv-sidecar[launch]: LAUNCH_PYTHON,
# the repository's own environment (`make install`), or python3.
set -eu
here=$(dirname -- "$(readlink -f -- "$0")")
usual=$here/../.venv/bin/python
[ -x "$usual" ] || usual=python3
exec "${LAUNCH_PYTHON:-$usual}" "$here/__main__.py" "$@"
