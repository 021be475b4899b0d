"""Drives a lane of transfers until they have ended."""

from __future__ import annotations

from typing import Any

from sidecar.engines.cuda.lane import Turns
from tests.support.server import wait_until


def ended(lane: Turns[Any], count: int) -> list[int]:
    """The jobs of the next `count` transfers that end, in that order."""
    jobs: list[int] = []

    def enough() -> bool:
        jobs.extend(transfer.job for transfer in lane.advance())
        return len(jobs) >= count

    wait_until(enough, f"{count} transfers ended")
    return jobs
