"""What Dynamo's KV router (1.6.1) logs of each request that it routes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Beside the choice itself: how many workers can load something, which is told before it.
LOG = "info,dynamo_kv_router::indexer::lower_tier_indexers=debug"
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_HOLDERS = re.compile(r"storage_tier=HostPinned queried_workers=\d+ matched_workers=(\d+)")
_SELECTED = re.compile(
    r"Selected worker .*worker_id=(\d+) .*host_pinned_blocks=(\d+) disk_blocks=(\d+)"
)


@dataclass(frozen=True)
class Decision:
    """The worker of one request, and how many of its blocks are below that worker's GPU.

    `holders` workers can load some of them from host memory; it is right where requests are routed
    one at a time, with `LOG`.
    """

    worker: int
    host_blocks: int
    disk_blocks: int
    holders: int


def decisions(log: str) -> list[Decision]:
    """All of a frontend's log, in its order."""
    return [*_decisions(_COLOURS.sub("", log).splitlines())]


def _decisions(lines: list[str]) -> Iterator[Decision]:
    holders = 0
    for line in lines:
        if known := _HOLDERS.search(line):
            holders = int(known[1])
        elif chosen := _SELECTED.search(line):
            worker, host_blocks, disk_blocks = map(int, chosen.groups())
            yield Decision(worker, host_blocks, disk_blocks, holders)
            holders = 0
