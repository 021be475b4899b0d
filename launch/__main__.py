"""What the scripts beside this file run: `__main__.py COMMAND [OPTION...]`."""

import sys
from pathlib import Path

# The scripts run this file by its path, so that they need no PYTHONPATH, which the programs of
# the stack would inherit.
sys.path[0] = str(Path(__file__).resolve().parents[1])

from launch.cli import main  # noqa: E402

sys.exit(main(sys.argv[1:]))
