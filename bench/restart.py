"""How soon a restarted server serves what its predecessor has left in a full L1."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

from bench import servers
from bench.cases import LARGE_TOKENS
from bench.client import CHUNK_TOKENS, LARGE, POINT, Pool, Request, Worker
from bench.common import LIMIT, BenchError
from bench.figures import Samples

_KEEP = ("--l1-keep-seconds", "600")
_TINY_TOKENS = 131_072


def measure(pool: Pool, l1_gb: int, objects: int, logs: Path) -> Samples:
    """Seconds from the spawn of the successor to its first hit, retrieved. The bytes are compared.

    In the end with so many tiny `objects`. The peer's L1 ends with it.
    """
    samples: Samples = {}
    with servers.running("ours", l1_gb, logs, _KEEP) as server:
        server.wait_populated()
        one_more_than_fits = l1_gb * 2**30 // LARGE.nbytes(LARGE_TOKENS) + 1
        for number in (SIGTERM, SIGKILL):
            seconds = _first_hit(server, pool, number, LARGE_TOKENS, one_more_than_fits)
            samples[f"restart_{number.name.lower()}"] = [seconds]
    with closing(Pool(POINT)) as tiny, servers.running("ours", l1_gb, logs, _KEEP) as server:
        server.wait_populated()
        prompts = -(-objects * CHUNK_TOKENS // _TINY_TOKENS)
        samples["restart_many"] = [_first_hit(server, tiny, SIGTERM, _TINY_TOKENS, prompts)]
    return samples


def _first_hit(
    server: servers.Server, pool: Pool, end: Signals, tokens: int, prompts: int
) -> float:
    """Of the last of so many new prompts, which the earlier server has stored; in seconds."""
    ((source, target),) = pool.block_lists(tokens, 1)
    stored = _fill(server, pool, source, tokens, prompts)
    if end == SIGKILL:
        _wait_digested(server)
    server.end(end)
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
    return seconds


def _fill(
    server: servers.Server, pool: Pool, source: list[int], tokens: int, prompts: int
) -> Request:
    """Stores these blocks as ever new prompts; the last one."""
    with closing(Worker(server.url, pool)) as worker:
        for _ in range(prompts):
            request = worker.request(pool.tokens(tokens))
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
