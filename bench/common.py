"""What all parts of the bench use; it needs nothing but Python."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LIMIT = 120.0
STOP_LIMIT = 10.0


class BenchError(RuntimeError):
    """A server answered wrongly, late or with other bytes: no figure can be trusted."""


@dataclass(frozen=True)
class Span:
    """When one client began and ended a phase, on the clock that all processes share."""

    start: float
    end: float


def unlink_segments(pid: int) -> None:
    """Removes what an interrupted client left: the stock class unlinks only when it is whole."""
    for segment in Path("/dev/shm").glob(f"lmcache_kv_{pid}_*"):
        segment.unlink(missing_ok=True)
