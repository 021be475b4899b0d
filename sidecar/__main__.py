"""The ``kv-sidecar`` command and ``python -m sidecar``."""

import os
import signal
import sys


def main() -> int:
    """Run the command; the exit code.

    Imports take half a second. As process 1 of a container it would not hear SIGTERM until the
    server has a handler for it: the kernel ignores what process 1 has none for.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(128 + number))
    from sidecar.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
