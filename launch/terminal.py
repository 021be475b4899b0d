"""What people see: one stream with the programs' names in front, and a line of progress."""

import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Sequence

_COLOURS = (36, 33, 35, 32, 34, 31)
_QUIET_SECONDS = 15.0
_CLOSE_SECONDS = 2.0
_SPINNER = "|/-\\"
_LAUNCHER = "launch"


class Terminal:
    """Writes to standard output, where that is open, in a thread of its own.

    A terminal that has been stopped, or a pager that waits for a key, holds up nobody else; where
    nobody reads any more, it falls silent.
    """

    def __init__(self, names: Sequence[str]) -> None:
        # Not by its name: closed, its number is that of the next file that was opened.
        self._descriptor = sys.stdout.fileno() if sys.stdout else None
        self._encoding = sys.stdout.encoding if sys.stdout else "ascii"
        self._tty = self._descriptor is not None and os.isatty(self._descriptor)
        self._width = max(map(len, [_LAUNCHER, *names]))
        self._colour = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
        self._shown = ""
        self._started = self._reported = time.monotonic()
        self._turn = 0
        self._queue: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._write_all, daemon=True).start()

    def say(self, text: str) -> None:
        """A line of the launcher itself."""
        self.line(_LAUNCHER, text)

    def line(self, name: str, text: str) -> None:
        prefix = f"{name:{self._width}} |"
        if self._tty and name in self._colour:
            prefix = f"\x1b[{self._colour[name]}m{prefix}\x1b[0m"
        self._put(f"{prefix} {text}\n")

    def progress(self, text: str) -> None:
        """What is awaited: at the bottom of a terminal, now and then a line elsewhere."""
        now = time.monotonic()
        if not text:  # the next time counts from here
            self._started = self._reported = now
            return
        seconds = f"{now - self._started:.0f} s"
        if self._tty and not self.is_behind():
            self._turn += 1
            width = shutil.get_terminal_size().columns - 1
            self._put("", f"{_SPINNER[self._turn % 4]} {seconds}: {text}"[:width])
        elif not self._tty and now - self._reported > _QUIET_SECONDS:
            self._reported = now
            self.say(f"{seconds}: {text}")

    def is_behind(self) -> bool:
        """Whether it still has to write what it was given: more had better wait."""
        return not self._queue.empty()

    def close(self) -> None:
        """Remove the line of progress, and wait a moment for what is not written yet."""
        self._put("")
        deadline = time.monotonic() + _CLOSE_SECONDS
        while self._queue.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.01)

    def _put(self, text: str, bottom: str = "") -> None:
        """`text` above what stands at the bottom of the terminal, which `bottom` replaces."""
        erase = "\r\x1b[K" if self._shown else ""
        self._shown = bottom
        self._queue.put(f"{erase}{text}{bottom}")

    def _write_all(self) -> None:
        while True:
            self._write(self._queue.get().encode(self._encoding, "replace"))
            self._queue.task_done()

    def _write(self, data: bytes) -> None:
        try:
            while data and self._descriptor is not None:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # a closed pipe, a full disk: the stack serves on, and its logs are there
            self._descriptor = None
