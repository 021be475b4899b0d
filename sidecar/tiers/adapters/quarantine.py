"""Where bad files go: kept for inspection, few of them, the newest."""

import os
import re
import shutil
import time
from contextlib import suppress

MAX_FILES = 16
MAX_BYTES = 1 << 30
_NAMED = re.compile(r".+\.(\d+)")
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]")


class Quarantine:
    """The directory of bad files, each called `<label>.<when>` (ns since 1970)."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def take(self, file: str, label: str) -> bool:
        """Move `file` here; whether it is kept. Raises OSError."""
        label = _UNSAFE.sub("_", label)[:200]
        kept = f"{self.directory}/{label}.{time.time_ns()}"
        os.makedirs(self.directory, 0o700, exist_ok=True)
        try:
            os.rename(file, kept)
        except FileNotFoundError:
            return False  # replaced or evicted meanwhile
        self._trim()
        return os.path.lexists(kept)

    def _trim(self) -> None:
        files, size = 0, 0
        for path in self._newest_first():
            with suppress(FileNotFoundError):
                files += 1
                size += os.lstat(path).st_size
                if files > MAX_FILES or size > MAX_BYTES:
                    _remove(path)

    def _newest_first(self) -> list[str]:
        found = []
        for name in os.listdir(self.directory):
            match = _NAMED.fullmatch(name)
            if match:
                found.append((int(match[1]), f"{self.directory}/{name}"))
        return [path for _, path in sorted(found, reverse=True)]


def _remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)
