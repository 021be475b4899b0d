"""`python -m bench.soak`: workers without end before a small L1, and the server's memory meanwhile.

What they store is evicted all the time. Prints the memory beside the L1 every half a minute, and
in the end whether all accounts of the cache agree and nothing is held.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from bench import crowd, idle, servers
from bench.client import SMALL, Pool, Request, Worker
from bench.common import LIMIT
from bench.mixed import Mixed, phase

_CLIENTS = 4
_PACE_SECONDS = 0.03
_L1_GB = 1  # 256 objects
_SAMPLE_SECONDS = 30.0


class _Churn(Mixed):
    misses = 0

    def locked(self, request: Request) -> bool:
        """What has been evicted meanwhile is a miss."""
        hit = self.worker.try_lock(request, 0.0)
        self.misses += not hit
        return hit


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    seconds = int(60 * parser.parse_args().minutes)
    with (
        tempfile.TemporaryDirectory(prefix="kv-bench-") as logs,
        servers.running("ours", _L1_GB, Path(logs)) as server,
    ):
        stop = threading.Event()
        watch = threading.Thread(target=_watch, args=(server, stop))
        watch.start()
        try:
            counts = crowd.run(_client, server.url, _CLIENTS, seconds, limit=seconds + LIMIT)
        finally:
            stop.set()
            watch.join()
        operations, misses = (sum(each) for each in zip(*counts, strict=True))
        print(f"{operations} operations, {misses} of them misses")
        _print_memory(server, "at rest")
        return _checked(server)


def _client(url: str, barrier: Barrier, seconds: int) -> tuple[int, int]:
    with closing(Pool(SMALL)) as pool, closing(Worker(url, pool)) as worker:
        one = _Churn(worker)
        one.store()
        barrier.wait(LIMIT)
        taken = phase(one, seconds, _PACE_SECONDS)
        barrier.wait(LIMIT)
        pool.check_equal(one.source, one.target)
        return sum(map(len, taken.values())), one.misses


def _watch(server: servers.Server, stop: threading.Event) -> None:
    begun = time.monotonic()
    while not stop.wait(_SAMPLE_SECONDS):
        _print_memory(server, f"after {time.monotonic() - begun:.0f} s")


def _print_memory(server: servers.Server, when: str) -> None:
    evicted = server.metric("lmcache_mp_l1_evicted_chunks_total")
    memory = idle.memory_beside_l1(server.process.pid) / 1e6
    print(f"{when}: {memory:.1f} MB beside the L1, {evicted} objects evicted", flush=True)


def _checked(server: servers.Server) -> int:
    """0 if nothing is held and the accounts agree."""
    l1 = server.get("/status")["storage_manager"]["l1_manager"]
    held = l1["read_locked_count"] + l1["write_locked_count"]
    answer = server.post("/cache/check", {})
    print(f"{held} objects held; check: {answer['status']}")
    return int(bool(held) or answer["status"] != "ok")


if __name__ == "__main__":
    sys.exit(main())
