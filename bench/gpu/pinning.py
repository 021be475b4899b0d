"""What it costs to pin the arena, and what inference notices of it."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from statistics import median

import numpy as np

from bench.common import BenchError, Span
from bench.gpu.background import Background
from bench.gpu.findings import Finding
from sidecar.cache.arena import PIECE_BYTES
from sidecar.engines.cuda.driver import Driver
from sidecar.engines.cuda.pinning import PinnedArena

_MARGIN = 2.0  # seconds of inference before and after


def measure(driver: Driver, inference: Background, nbytes: int = 4 << 30) -> list[Finding]:
    """Pins resident memory piece by piece, without a child's rests, beside `inference`."""
    memory = tmpfs(nbytes)
    time.sleep(_MARGIN)
    pieces = pin(driver, memory)
    time.sleep(_MARGIN)
    seconds = [piece.end - piece.start for piece in pieces]
    stall = longest_stall(inference.steps(), Span(pieces[0].start, pieces[-1].end))
    return [
        Finding("pin_piece", 1e3 * median(seconds), f"the longest {1e3 * max(seconds):.1f} ms"),
        Finding("pin_gigabyte", sum(seconds) / nbytes * 1e9),
        Finding("pin_stall", 1e3 * stall),
    ]


def pin(driver: Driver, memory: mmap.mmap) -> list[Span]:
    """When each piece was pinned. The memory stays so until the process ends."""
    size = len(memory)
    arena = PinnedArena(driver, np.frombuffer(memory, np.uint8).ctypes.data, size)
    pieces = []
    for offset in range(0, size, PIECE_BYTES):
        start = time.monotonic()
        arena.need(np.array([offset]))
        pieces.append(Span(start, time.monotonic()))
    if arena.pinned_bytes < size:
        raise BenchError("not all of the memory could be pinned")
    return pieces


def longest_stall(steps: Sequence[Span], pinning: Span) -> float:
    """By how many seconds the longest step during `pinning` exceeds the median of the others."""
    during: list[float] = []
    others: list[float] = []
    for step in steps:
        beside = step.end > pinning.start and step.start < pinning.end
        (during if beside else others).append(step.end - step.start)
    return max(during) - median(others)


def tmpfs(nbytes: int) -> mmap.mmap:
    """Resident pages, of the kind that the arena has."""
    fd = os.memfd_create("bench")
    os.ftruncate(fd, nbytes)
    memory = mmap.mmap(fd, nbytes)
    os.close(fd)
    np.frombuffer(memory, np.uint8)[:: mmap.PAGESIZE] = 1
    return memory
