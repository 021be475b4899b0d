"""What people see: one stream with the programs' names in front, and a line of progress."""

import shutil
import sys
import time
from collections.abc import Sequence

_COLOURS = (36, 33, 35, 32, 34, 31)
_QUIET_SECONDS = 15.0
_SPINNER = "|/-\\"
_LAUNCHER = "launch"


class Terminal:
    """Writes to standard output; where nobody reads that any more, it falls silent."""

    def __init__(self, names: Sequence[str]) -> None:
        self._tty = sys.stdout.isatty()
        self._width = max(map(len, [_LAUNCHER, *names]))
        self._colour = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
        self._shown = ""
        self._started = self._reported = time.monotonic()
        self._turn = 0

    def say(self, text: str) -> None:
        """A line of the launcher itself."""
        self.line(_LAUNCHER, text)

    def line(self, name: str, text: str) -> None:
        prefix = f"{name:{self._width}} |"
        if self._tty and name in self._colour:
            prefix = f"\x1b[{self._colour[name]}m{prefix}\x1b[0m"
        self._write(f"{prefix} {text}\n")

    def progress(self, text: str) -> None:
        """What is awaited: at the bottom of a terminal, now and then a line elsewhere."""
        now = time.monotonic()
        seconds = f"{now - self._started:.0f} s"
        if self._tty:
            self._turn += 1
            width = shutil.get_terminal_size().columns - 1
            self._write("", f"{_SPINNER[self._turn % 4]} {seconds}: {text}"[:width])
        elif now - self._reported > _QUIET_SECONDS:
            self._reported = now
            self.say(f"{seconds}: {text}")

    def end_progress(self) -> None:
        self._write("")

    def _write(self, text: str, bottom: str = "") -> None:
        """`text` above what stands at the bottom of the terminal, which `bottom` replaces."""
        erase = "\r\x1b[K" if self._shown else ""
        self._shown = bottom
        try:
            sys.stdout.write(f"{erase}{text}{bottom}")
            sys.stdout.flush()
        except OSError:  # a closed pipe, a full disk: the stack serves on, and its logs are there
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115 - for the rest of the process
