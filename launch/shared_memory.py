"""What the programs have in /dev/shm: a program that was killed leaves it there for good."""

import os
from collections.abc import Iterable
from pathlib import Path

from launch.processes import Process

_SHM = "/dev/shm/"
_DELETED = " (deleted)"


def mapped(processes: Iterable[Process]) -> set[str]:
    """The files of /dev/shm that these processes have mapped."""
    return {path for process in processes for path in _of(process.pid)}


def remove(paths: Iterable[str]) -> list[str]:
    """Remove those of `paths` that no process has mapped; what was removed."""
    unused = set(paths) - {path for pid in _pids() for path in _of(pid)}
    removed = []
    for path in sorted(unused):
        try:
            os.unlink(path)
            removed.append(path)
        except OSError:
            continue  # its owner has removed it, or it is another user's
    return removed


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def _of(pid: int) -> set[str]:
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    paths = {line[line.find(_SHM) :] for line in lines if _SHM in line}
    return {path for path in paths if not path.endswith(_DELETED)}
