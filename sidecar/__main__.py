"""The ``kv-sidecar`` command and ``python -m sidecar``."""

import os
import signal
import sys


def main() -> int:
    """Run the command; the exit code."""
    _open_standard_streams()
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    _end_quietly(interruptible)
    from sidecar.cli import main as run

    # The server has handlers of its own.
    if interruptible and sys.argv[1:2] != ["serve"]:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return run()


def _open_standard_streams() -> None:
    """Fill closed ones: else a file of the cache gets number 2, and what libraries say with it."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    # Python has none for what was closed.
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")


def _end_quietly(interruptible: bool) -> None:
    """Imports take half a second: a signal meanwhile ends the command, without a traceback.

    As process 1 of a container it would not hear one: the kernel ignores what process 1 has no
    handler for.
    """
    if os.getpid() == 1:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda number, frame: os._exit(128 + number))
    elif interruptible:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    sys.exit(main())
