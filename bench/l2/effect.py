"""What write-behind costs those who store and retrieve meanwhile."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from pathlib import Path

from bench import disk
from bench.cases import LARGE_TOKENS, Pools
from bench.client import LARGE, Worker
from bench.common import BenchError
from bench.figures import Samples
from bench.l2.setting import LIMIT, OBJECT_GB, OBJECTS, Plan, directory, running

# Two servers at once, with the client's blocks in the same /dev/shm.
EFFECT_L1_GB = 3
BURST, BURST_PAUSE = 2, 0.25
KEPT_LIMIT = 0.5
QUIET = 1.0


def effect(name: str, plan: Plan, pools: Pools, logs: Path) -> Samples:
    """The L1's rates with an L2, in percent of those without: two servers in turn.

    In bursts, which leave pauses to write in, and without any pause.
    """
    samples: Samples = {}
    with ExitStack() as stack:
        base = stack.enter_context(directory(plan))
        pairs = []
        for kind in (None, "fs"):
            started = running(name, kind, base, EFFECT_L1_GB, logs)
            server = stack.enter_context(started)
            worker = stack.enter_context(closing(Worker(server.url, pools.large)))
            pairs.append((server, worker))
            _warm_up(worker)
        for number in range(plan.pairs):
            for pattern, burst in {"burst": BURST, "nonstop": 0}.items():
                rates = {}
                for server, worker in pairs[:: 1 if number % 2 else -1]:
                    _settle(base)
                    server.clear_l1()
                    rates[server.port] = _round_trips(worker, plan.effect_seconds, burst)
                for what, without, with_l2 in zip(
                    ("store", "retrieve"), *(rates[server.port] for server, _ in pairs), strict=True
                ):
                    key = f"l2_{pattern}_{what}"
                    samples.setdefault(f"{key}_without", []).append(without)
                    samples.setdefault(f"{key}_with", []).append(with_l2)
                    samples.setdefault(f"{key}_kept", []).append(100 * with_l2 / without)
        _settle(base)
    return samples


def _warm_up(worker: Worker) -> None:
    """Stores as much as the L1 holds: pages that nobody has touched cost more."""
    ((source, _),) = worker.pool.block_lists(LARGE_TOKENS, 1)
    for _ in range(EFFECT_L1_GB * 2**30 // LARGE.nbytes(LARGE_TOKENS)):
        request = worker.request(worker.pool.tokens(LARGE_TOKENS))
        worker.store(request, source)
        worker.end(request)


def _round_trips(worker: Worker, seconds: float, burst: int) -> tuple[float, float]:
    """GB/s of large stores and of retrieves, with a pause before each `burst` of them."""
    stored = retrieved = 0.0
    requests = 0
    ((source, target),) = worker.pool.block_lists(LARGE_TOKENS, 1)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if burst and requests % burst == 0:
            time.sleep(BURST_PAUSE)
        request = worker.request(worker.pool.tokens(LARGE_TOKENS))
        seconds_stored = worker.store(request, source)
        # The peer says yes to stores for which it has no room, while L2 is slow to take them.
        if worker.try_lock(request, KEPT_LIMIT):
            stored += seconds_stored
            retrieved += worker.retrieve(request, target)
            worker.end(request)
            requests += 1
    if not requests:
        raise BenchError("no store was kept in the L1")
    gigabytes = requests * OBJECTS * OBJECT_GB
    return gigabytes / stored, gigabytes / retrieved


def _settle(base: Path) -> None:
    """Waits until nothing more is written, and removes what was."""
    deadline = time.monotonic() + LIMIT
    before = -1
    while (there := sum(1 for _ in disk.records(base))) != before:
        if time.monotonic() > deadline:
            raise BenchError(f"L2 is still being written after {LIMIT:.0f} s")
        before = there
        time.sleep(QUIET)
    disk.remove_records(base)
