"""`--l2-store-policy reused`: what nobody comes back for never reaches L2."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sidecar.handlers.gauges import observe
from sidecar.tiers.record import HEADER_BYTES
from tests.support.node import CHUNK, WORKERS, EngineDrivenWorker, HandleWorker, Node
from tests.support.tiers import DEFAULTS, OBJECT_BYTES, Bench, Memory

PROMPT = list(range(4 * CHUNK))


class Site:
    """A worker over a node whose one backend gets what is used again."""

    def __init__(self, mode: str, slots: int = 16) -> None:
        self.memory = Memory()
        policy = replace(DEFAULTS, reused=True)
        self.bench = Bench(self.memory, slots=slots, policy=policy).start()
        self.node = Node(self.bench)
        self.worker: HandleWorker | EngineDrivenWorker = WORKERS[mode](self.node, 1)
        observe(self.node.core)

    def amplification(self) -> float:
        """What L2 has written for each byte that was stored, as its gauge tells."""
        [(labels, value)] = self.bench.telemetry.gauges["l2_write_amplification"].series()
        assert labels == {"l2_name": "memory"}
        return value

    def written(self) -> int:
        self.bench.settle()
        return self.memory.calls.count("store")


@pytest.mark.parametrize("mode", WORKERS)
def test_a_prompt_is_written_when_it_is_used_again(mode: str) -> None:
    site = Site(mode)
    assert site.amplification() == 0.0
    site.worker.write(PROMPT, 0, 2, "r1")
    site.worker.write(PROMPT, 2, 4, "r1")
    assert site.written() == 0 and site.amplification() == 0.0
    assert site.bench.count("l2_store_deferred_chunks") == 4
    assert site.node.lookup(site.worker.key(PROMPT, 0, 3, "r2")) == 3
    assert site.written() == 0, "nobody has used it yet"
    site.worker.read(PROMPT, 0, 3, "r2")
    assert site.written() == 3
    record = HEADER_BYTES + OBJECT_BYTES
    assert site.amplification() == pytest.approx(3 * record / (4 * OBJECT_BYTES))
    assert site.node.lookup(site.worker.key(PROMPT, 0, 3, "r3")) == 3
    site.worker.read(PROMPT, 0, 3, "r3")
    assert site.written() == 3, "L2 has it already"
    site.worker.write(PROMPT[::-1], 0, 4, "r4")
    assert site.amplification() == pytest.approx(3 * record / (8 * OBJECT_BYTES))


@pytest.mark.parametrize("mode", WORKERS)
def test_what_had_to_go_and_is_stored_again_is_written(mode: str) -> None:
    site = Site(mode)
    site.worker.write(PROMPT, 0, 4, "r1")
    site.bench.l1.evict(100, 0)
    assert site.bench.l1.objects == 0, "eviction does not wait for L2"
    site.worker.write(PROMPT, 0, 4, "r2")
    assert site.written() == 4
    assert site.bench.count("l2_store_deferred_chunks") == 4


def test_what_l2_has_given_up_is_written_when_it_is_used() -> None:
    site = Site("handle")
    site.worker.write(PROMPT, 0, 2, "r1")
    for request in ("r2", "r3"):
        assert site.node.lookup(site.worker.key(PROMPT, 0, 2, request)) == 2
        site.worker.read(PROMPT, 0, 2, request)
        assert site.written() == {"r2": 2, "r3": 4}[request]
        (backend,) = site.bench.tiers.backends
        backend.evict(backend.catalog.give_up(1 << 40, []))
        site.bench.settle()
