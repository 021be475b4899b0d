"""How soon a restarted server serves what is in its L2."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path

from bench import servers
from bench.cases import Pools
from bench.client import CHUNK_TOKENS, Worker
from bench.figures import Samples
from bench.l2.setting import Plan, adapter, counter, directory, running, wait_for

RESTART_TOKENS = 131_072
RESTART_PROMPTS = 40  # of 512 objects each
RESTART_HIT = 2_048


def restart(name: str, plan: Plan, pools: Pools, logs: Path) -> Samples:
    """From the spawn of a server that finds 20,480 objects to its first hit, retrieved."""
    with directory(plan) as base:
        with (
            running(name, "fs", base, plan.l1_gb, logs) as server,
            closing(Worker(server.url, pools.tiny)) as worker,
        ):
            ((source, target),) = worker.pool.block_lists(RESTART_TOKENS, 1)
            count = counter(server, "fs", base)
            for number in range(RESTART_PROMPTS):
                request = worker.request(worker.pool.tokens(RESTART_TOKENS))
                worker.store(request, source)
                worker.end(request)
                wait_for(count, (number + 1) * RESTART_TOKENS // CHUNK_TOKENS)
        start = time.monotonic()
        flags = ["--l2-adapter", json.dumps(adapter(name, "fs", base))]
        with (
            servers.running(name, plan.l1_gb, logs, flags) as server,
            closing(Worker(server.url, pools.tiny)) as worker,
        ):
            known = worker.request(request.tokens[:RESTART_HIT])
            worker.lock(known)
            worker.retrieve(known, target[: RESTART_HIT // 16])
            seconds = time.monotonic() - start
            worker.end(known)
            worker.pool.check_equal(source[: RESTART_HIT // 16], target[: RESTART_HIT // 16])
    return {"l2_restart": [seconds]}
