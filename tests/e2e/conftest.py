"""Real vLLM processes that share one sidecar."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from connectors import roles
from connectors.lmcache_mp import CacheServer, TransferMode
from examples.demo.client import Completion, complete
from examples.demo.engine import Engine, start_engine
from launch import processes, shared_memory
from launch.tiny_model import make_model
from tests.support.server import Server

CHUNK_SIZE = 256
MAX_TOKENS = 12


@dataclass(frozen=True)
class Setup:
    """A sidecar and two engines, on a core each, that use it in `mode`."""

    mode: TransferMode
    server: Server
    first: Engine
    second: Engine

    def hit_tokens(self) -> int:
        return int(self.server.metrics().total("lmcache_mp_lookup_hit_tokens_total"))

    def stored_chunks(self) -> int:
        return int(self.server.metrics().total("lmcache_mp_l1_write_chunks_total"))


def prompt(topic: str, tokens: int = 1500) -> str:
    """A text of `tokens` tokens (and bytes) that differs from any other topic's in each chunk."""
    return "".join(f"{topic} {i} is {i * i}. " for i in range(tokens))[:tokens]


def ask(engine: Engine, text: str) -> Completion:
    return complete(engine.url, text, MAX_TOKENS)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("vllm") / "model", hidden=256, layers=4)


@pytest.fixture(scope="module", params=["engine_driven", "lmcache_driven"])
def setup(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Setup]:
    """Costs the start of two engines (about 45 s), so the tests of a module share it."""
    logs = tmp_path_factory.mktemp(request.param)
    server = Server(
        logs,
        # The tests kill workers and wait for the sidecar to notice.
        *("--worker-reap-timeout-seconds", "30"),
        l1_size_gb=1,
        chunk_size=CHUNK_SIZE,
    )
    client = CacheServer(
        port=server.port,
        transfer_mode=request.param,
        heartbeat_seconds=1,
        # An engine-driven worker ends where a store meets the timeout, so it has to be longer
        # than a test leaves the sidecar dead.
        timeout_seconds=5 if request.param == "lmcache_driven" else 120,
    )
    transfer = roles.aggregated(client)

    def start(core: int) -> Engine:
        return start_engine(model, transfer, logs / f"vllm-{core}.log", cores=str(core))

    engines: list[Engine] = []
    try:
        server.start()
        with ThreadPoolExecutor(2) as pool:
            for starting in [pool.submit(start, core) for core in (0, 1)]:
                engines.append(starting.result())
        yield Setup(request.param, server, *engines)
    finally:
        for engine in engines:
            with no_segments_left(engine):
                engine.process.stop()
        server.stop()


@contextmanager
def engine_on(
    server: Server, model: Path, transfer: dict[str, Any], log: Path, more: Sequence[str] = ()
) -> Iterator[Engine]:
    """`server` started, and an engine beside it; both are stopped in the end."""
    try:
        server.start()
        engine = start_engine(model, transfer, log, more=more)
        try:
            yield engine
        finally:
            with no_segments_left(engine):
                engine.process.stop()
    finally:
        server.stop()


@contextmanager
def no_segments_left(engine: Engine) -> Iterator[None]:
    """After the body has ended `engine`, remove the shared memory that only it had mapped.

    A killed vLLM leaves its queues and its KV there.
    """
    found = filter(None, map(processes.read, engine.process.pids()))
    segments = {path for path in shared_memory.mapped(found) if "lmcache_l1_pool_" not in path}
    yield
    # Also what the sidecar still has mapped: it lets go of a dead worker's KV after a while.
    for segment in segments:
        Path(segment).unlink(missing_ok=True)
