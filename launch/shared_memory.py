"""What the programs have in /dev/shm: a program that was killed leaves it there for good."""

import os
from collections.abc import Iterable
from pathlib import Path

from launch.processes import Process

_SHM = "/dev/shm"


def mapped(processes: Iterable[Process]) -> set[str]:
    """The files of /dev/shm that these processes have mapped.

    By their inodes: a semaphore gets its name after it was mapped under another one, which its
    creator goes on to show as deleted.
    """
    return _named(process.pid for process in processes)


def remove(paths: Iterable[str]) -> list[str]:
    """Remove those of `paths` that no process has mapped; what was removed."""
    everyone = (int(name) for name in os.listdir("/proc") if name.isdecimal())
    unused = set(paths) - _named(everyone)
    removed = []
    for path in sorted(unused):
        try:
            os.unlink(path)
            removed.append(path)
        except OSError:
            continue  # its owner has removed it, or it is another user's
    return removed


def _named(pids: Iterable[int]) -> set[str]:
    inodes = {inode for pid in pids for inode in _inodes(pid)}
    with os.scandir(_SHM) as entries:
        return {entry.path for entry in entries if entry.inode() in inodes}


def _inodes(pid: int) -> set[int]:
    """Of what the process has mapped there: `address perms offset device inode path`."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {int(line.split(maxsplit=5)[4]) for line in lines if f" {_SHM}/" in line}
