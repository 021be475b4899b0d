"""How soon a restarted server serves what its predecessor has left in a full L1."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from signal import SIGKILL, SIGTERM

from bench import servers
from bench.cases import LARGE_TOKENS
from bench.client import LARGE, Pool, Request, Worker
from bench.common import LIMIT, BenchError
from bench.figures import Samples

_KEEP = ("--l1-keep-seconds", "600")


def measure(pool: Pool, l1_gb: int, logs: Path) -> Samples:
    """Seconds from the spawn of the successor to its first hit, retrieved. The bytes are compared.

    The peer's L1 ends with it.
    """
    samples: Samples = {}
    with servers.running("ours", l1_gb, logs, _KEEP) as server:
        server.wait_populated()
        for number in (SIGTERM, SIGKILL):
            ((source, target),) = pool.block_lists(LARGE_TOKENS, 1)
            stored = _fill(server, pool, source, l1_gb)
            if number == SIGKILL:
                _wait_digested(server)
            server.end(number)
            start = time.monotonic()
            server.spawn()
            server.wait_ready()
            with closing(Worker(server.url, pool)) as worker:
                known = worker.request(stored.tokens)
                worker.lock(known)
                worker.retrieve(known, target)
                seconds = time.monotonic() - start
                worker.end(known)
            pool.check_equal(source, target)
            samples[f"restart_{number.name.lower()}"] = [seconds]
    return samples


def _fill(server: servers.Server, pool: Pool, source: list[int], l1_gb: int) -> Request:
    """Stores these blocks as ever new prompts, one more than fit; the last prompt."""
    with closing(Worker(server.url, pool)) as worker:
        for _ in range(l1_gb * 2**30 // LARGE.nbytes(LARGE_TOKENS) + 1):
            request = worker.request(pool.tokens(LARGE_TOKENS))
            worker.store(request, source)
            worker.end(request)
    return request


def _wait_digested(server: servers.Server) -> None:
    """What has no digest yet is lost with a server that is killed."""
    end = time.monotonic() + LIMIT
    while server.metric("lmcache_mp_l1_undigested_objects"):
        if time.monotonic() > end:
            raise BenchError("digests are not computed")
        time.sleep(0.1)
