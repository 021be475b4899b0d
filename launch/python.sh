# shellcheck shell=sh
# Sets `python` to the interpreter that has kv-sidecar[launch]: LAUNCH_PYTHON, the repository's own
# environment (`make install`), or python3.
if [ -z "${LAUNCH_PYTHON:-}" ] && [ -x "$here/../.venv/bin/python" ]; then
    python=$here/../.venv/bin/python
else
    python=${LAUNCH_PYTHON:-python3}
fi
