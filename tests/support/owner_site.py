"""A node on which processes come and go: its clock is turned by hand, its segment is a real one."""

from __future__ import annotations

import itertools
import os
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from sidecar.cache.segment import Segment
from sidecar.engines.attachments import Attachments, watch_shared_memory
from tests.support.node import Node
from tests.support.tiers import Bench, Memory

_names = itertools.count()


class Site:
    """A node whose clock the test turns, with names in /dev/shm that workers open."""

    def __init__(self, slots: int, *below: Memory) -> None:
        self.clock = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.clock)
        self._patch = patch("sidecar.handlers.core.time", clock)
        self._patch.start()
        self.segment = Segment(f"owners_{os.getpid()}_{next(_names)}", 4096)
        self.attachments = Attachments(self.segment, watch_shared_memory())
        self.node = Node(Bench(*below, slots=slots), self.attachments)
        self.node.core.arena.segment = self.segment
        self.gone = self.node.replies.gone
        self.registry = self.node.core.registry

    def call(self, client: bytes, operation: str, *payloads: object) -> Any:
        return self.node.ask(operation, *payloads, client=client)

    def pass_time(self, seconds: int) -> None:
        """Let the clock go on, second by second, as the server's own does."""
        for _ in range(seconds):
            self.clock += 1.0
            self.node.liveness.tick()

    def held(self) -> int:
        held: int = self.node.service.snapshot()["held_slots"]
        return held

    def refused(self, reason: str) -> int:
        return self.node.core.refusals.by_reason[reason]

    def close(self) -> None:
        self._patch.stop()
        self.node.close()
        self.attachments.close()
        self.segment.remove()
