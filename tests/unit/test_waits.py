"""wait_prefetch_status: as many of a connection as there may be are open, and no more count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from sidecar.handlers.lookups import _MAX_WAITS
from sidecar.tiers.names import ObjectName
from tests.support.node import CHUNK, HandleWorker, Node
from tests.support.tiers import Bench, Memory

LONG = 50.0  # seconds


class Site:
    """A node whose L2 answers no question before the gate is open."""

    def __init__(self) -> None:
        memory, self.gate = Memory(shared=True), threading.Event()
        memory.before = self._before
        self.bench = Bench(memory).start()
        self.node = Node(self.bench)
        self.worker = HandleWorker(self.node, 1)

    def _before(self, op: str, name: ObjectName | None) -> None:
        if op == "find":
            self.gate.wait(20)

    def begin(self, request: str) -> None:
        """A lookup that is under way."""
        key = {**self.worker.key(range(CHUNK), 0, 1, request), "worker_id": None}
        self.node.ask("lookup", key, 1)

    def wait(self, request: str, seconds: float = LONG, client: bytes = b"client") -> bytes:
        return self.node.call("wait_prefetch_status", request, seconds, client=client)

    def refused(self) -> dict[str, int]:
        return dict(self.node.core.refusals.by_reason)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.gate.set()
    made.node.close()


def open_all(site: Site) -> list[bytes]:
    site.begin("r")
    return [site.wait("r") for _ in range(_MAX_WAITS)]


def test_one_open_wait_more_than_there_may_be_is_refused(site: Site) -> None:
    """At once; those before it are answered when it is known."""
    waits = open_all(site)
    refused = site.wait("r")
    assert site.node.answered(refused) and site.refused() == {"too_many_waits": 1}
    assert not any(map(site.node.answered, waits))
    site.gate.set()
    site.bench.run_until(lambda: all(map(site.node.answered, waits)))


ENDS: dict[str, Callable[[Site], object]] = {
    "it is known": lambda site: site.gate.set(),
    "the time is up": lambda site: site.bench.fire_timers(),
}


@pytest.mark.parametrize("ends", ENDS.values(), ids=ENDS)
def test_waits_that_have_been_answered_do_not_count(
    site: Site, ends: Callable[[Site], object]
) -> None:
    waits = open_all(site)
    ends(site)
    site.bench.run_until(lambda: all(map(site.node.answered, waits)))
    site.gate.clear()
    site.begin("another")
    one_more = site.wait("another")
    assert not site.node.answered(one_more) and site.refused() == {}
    site.gate.set()
    site.bench.run_until(lambda: site.node.answered(one_more))
    assert not site.node.service._lookups._waits
