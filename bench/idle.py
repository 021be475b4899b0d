"""What a server costs while nobody asks it anything, read from /proc."""

from __future__ import annotations

import os
import time
from pathlib import Path

from bench.figures import Samples


def measure(root: int, seconds: float) -> Samples:
    """Memory beside the L1 (MB) and CPU (percent of a core) of `root` and its children.

    Memory is RssAnon + RssFile: the resident pages less RssShmem, which holds the L1
    arena and the workers' KV blocks. CPU is the run time of all threads (schedstat).
    """
    pids = tree(root)
    before, start = run_seconds(pids), time.monotonic()
    time.sleep(seconds)
    used = run_seconds(pids) - before
    percent = 100 * used / (time.monotonic() - start)
    return {"idle_mb": [memory_beside_l1(root) / 1e6], "idle_cpu": [percent]}


def memory_beside_l1(root: int) -> int:
    """Bytes of `root` and its children."""
    return sum(map(_resident_beside_shm, tree(root)))


def tree(root: int) -> list[int]:
    """`root` and all processes below it."""
    found = [root]
    for pid in found:
        for children in Path(f"/proc/{pid}/task").glob("*/children"):
            found.extend(int(child) for child in children.read_text().split())
    return found


def run_seconds(pids: list[int]) -> float:
    """CPU time of the threads that they have, to the nanosecond where these rest."""
    nanoseconds = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            nanoseconds += int(task.read_text().split()[0])
    return nanoseconds / 1e9


def cpu_seconds(pids: list[int]) -> float:
    """CPU time since their start, in steps of 10 ms; it counts threads that have ended."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _resident_beside_shm(pid: int) -> int:
    total = 0
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(("RssAnon:", "RssFile:")):
            total += int(line.split()[1]) * 1024
    return total


def machine_load(seconds: float = 1.0) -> float:
    """The share of all cores' time that something else uses right now, 0 to 1."""
    busy, total = _machine_ticks()
    time.sleep(seconds)
    later_busy, later_total = _machine_ticks()
    return (later_busy - busy) / (later_total - total)


def _machine_ticks() -> tuple[int, int]:
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
