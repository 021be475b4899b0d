"""A vLLM and an lmcache that come together in images: the pair of Dynamo 1.6."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from connectors import roles
from connectors.lmcache_mp import CacheServer
from examples.counters import counter
from examples.demo.engine import ENVIRONMENT, READY_SECONDS, Engine, command
from examples.demo.process import Process, free_port
from tests.support.releases import folder
from tests.support.server import REPO, Server, wait_until

from .conftest import CHUNK_SIZE, ask, no_segments_left, prompt

pytestmark = pytest.mark.engine

# It has the vLLM that Dynamo pins, 0.31.
PYTHON = REPO / ".venv" / "dynamo" / "bin" / "python"
LMCACHE = "0.5.5"


@contextmanager
def engine(model: Path, server: Server, log: Path) -> Iterator[Engine]:
    client = CacheServer(port=server.port, transfer_mode="lmcache_driven", client=LMCACHE)
    port = free_port()
    arguments = command(model, roles.aggregated(client), port)[1:]
    process = Process(
        "vLLM",
        [str(PYTHON), "-m", "vllm.entrypoints.cli.main", *arguments],
        log,
        ENVIRONMENT | {"PYTHONPATH": str(folder(LMCACHE))},
    )
    started = Engine(process, f"http://127.0.0.1:{port}")
    try:
        process.wait_ready(f"{started.url}/health", READY_SECONDS, lambda: None)
        yield started
    finally:
        with no_segments_left(started):
            process.stop()


@pytest.mark.skipif(not PYTHON.exists(), reason="not installed: scripts/install.py dynamo")
def test_a_restarted_worker_hits_what_it_stored(model: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, l1_size_gb=1, chunk_size=CHUNK_SIZE)
    texts = [prompt("Rho", 2500), prompt("Sigma", 300)]
    chunks = sum(len(text) // CHUNK_SIZE for text in texts)
    try:
        server.start()
        with engine(model, server, tmp_path / "cold.log") as cold:
            (worker,) = server.status()["workers"]
            assert worker["lmcache"] == "0.5.5-0.5.6"
            computed = [ask(cold, text).token_ids for text in texts]
            stored = "lmcache_mp_l1_write_chunks_total"
            wait_until(lambda: server.metrics().total(stored) == chunks, "the prompts stored")
        with engine(model, server, tmp_path / "warm.log") as warm:
            cached = [ask(warm, text).token_ids for text in texts]
            loaded = counter(warm.url, "vllm:external_prefix_cache_hits_total")
        assert (cached, loaded) == (computed, chunks * CHUNK_SIZE)
        server.assert_no_leases()
    finally:
        server.stop()
