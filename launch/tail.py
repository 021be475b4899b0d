"""Following a log file that supervisor rotates."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_READ_BYTES = 1 << 20


class Tail:
    """The lines that appear at the end of a file, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def skip(self) -> None:
        """Leave out what is there now: an earlier stack wrote it."""
        if self._is_replaced():
            self._file = self._path.open("rb", buffering=0)
            self._file.seek(0, os.SEEK_END)

    def lines(self) -> Iterator[str]:
        """What is new and complete. At most a megabyte at once: others want to be heard too."""
        data = self._read()
        *complete, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _READ_BYTES:
            complete, self._rest = [*complete, self._rest], b""
        for line in complete:
            # Of a bar of progress, drawn over and over in one line, the last state.
            yield line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace")

    def _read(self) -> bytes:
        """From the file that is open until it has been renamed and is read to its end."""
        data = self._file.read(_READ_BYTES) if self._file else b""
        if not data and self._is_replaced():
            if self._file:
                self._file.close()
            self._file = self._path.open("rb", buffering=0)
            data = self._file.read(_READ_BYTES)
        return data

    def _is_replaced(self) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        return self._file is None or not os.path.samestat(found, os.fstat(self._file.fileno()))


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, without blank ones."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (64 << 10)))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]
