"""What the scripts beside this file run: `__main__.py COMMAND [OPTION...]`."""

import sys
from pathlib import Path

# The scripts run this file by its path, so that they need no PYTHONPATH, which the programs of
# the stack would inherit.
sys.path[0] = str(Path(__file__).resolve().parents[1])

try:
    from launch.cli import main
except ModuleNotFoundError as error:
    print(
        f"launch: {sys.executable} has no {error.name}: run `make install`, or name with "
        "LAUNCH_PYTHON an interpreter that has kv-sidecar[launch]",
        file=sys.stderr,
    )
    sys.exit(2)

sys.exit(main(sys.argv[1:]))
