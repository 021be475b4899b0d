"""What a server and its GPUs' processes hold of the machine, for tests of leaks."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.server import SHM, Server

_SPARE = 8  # files or segments that come and go with anybody's work
_SPARE_BYTES = 16 << 20


@dataclass(frozen=True)
class Footprint:
    """Open files, entries in /dev/shm (of anyone), and bytes of memory of their own."""

    files: int
    segments: int
    resident: int

    @classmethod
    def of(cls, server: Server) -> Self:
        """Of the server and its children."""
        assert server.process is not None
        tree = [server.process.pid, *children(server.process.pid)]
        files = sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in tree)
        return cls(files, len(list(SHM.iterdir())), sum(map(_resident, tree)))

    def assert_not_above(self, before: Self) -> None:
        """By more than what is always in motion."""
        assert self.files <= before.files + _SPARE
        assert self.segments <= before.segments + _SPARE
        assert self.resident <= before.resident + _SPARE_BYTES


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def _resident(pid: int) -> int:
    """Without the L1 and the workers' memory, which are shared."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
