"""A published trace of conversations against a small L1: what share of the tokens is a hit."""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np

from bench import servers
from bench.cases import Pools
from bench.client import BLOCK_TOKENS, CHUNK_TOKENS, VOCABULARY, Request, Worker
from bench.figures import Samples

TRACE = Path(__file__).parent / "traces" / "conversation.jsonl.gz"
# A quarter of what the requests ask for in chunks of 8 KiB, so that what is kept decides.
L1_GB = 0.12
_TOKENS_AN_ID = 512


def prompts(path: Path = TRACE) -> Iterator[tuple[int, ...]]:
    """The whole chunks of each request; equal beginnings of the trace are equal tokens."""
    with gzip.open(path, "rt") as lines:
        for line in lines:
            request = json.loads(line)
            tokens: list[int] = []
            for number in request["hash_ids"]:
                random = np.random.default_rng(number)
                tokens += random.integers(0, VOCABULARY, size=_TOKENS_AN_ID).tolist()
            yield tuple(tokens[: request["input_length"] // CHUNK_TOKENS * CHUNK_TOKENS])


def measure(name: str, pools: Pools, logs: Path) -> Samples:
    """Percent of the tokens that are hits, and requests a second."""
    asked = hit = requests = 0
    began = time.perf_counter()
    with (
        servers.running(name, L1_GB, logs) as server,
        closing(Worker(server.url, pools.tiny)) as worker,
    ):
        for tokens in prompts():
            hit += _serve(worker, worker.request(tokens))
            asked += len(tokens)
            requests += 1
    return {
        "replay_hits": [100 * hit / asked],
        "replay_rate": [requests / (time.perf_counter() - began)],
    }


def _serve(worker: Worker, request: Request) -> int:
    """What an engine does with a prompt: load what is cached, compute and store the rest."""
    if not request.tokens:
        return 0
    ((source, target),) = worker.pool.block_lists(len(request.tokens), 1)
    _, chunks = worker.lookup(request)
    known = chunks * CHUNK_TOKENS
    if known:
        prefix = Request(request.tokens[:known], request.request_id)
        worker.retrieve(prefix, target[: known // BLOCK_TOKENS])
    worker.store(request, source)
    worker.end(request)
    return known
