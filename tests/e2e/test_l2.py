"""What an L2 is for, with a real vLLM: more than the L1 holds, and a restart of the sidecar."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from connectors import roles
from connectors.lmcache_mp import CacheServer, TransferMode
from examples.demo.engine import Engine
from tests.support.server import Server, wait_until

from .conftest import CHUNK_SIZE, ask, engine_on, prompt

pytestmark = pytest.mark.engine

PROMPT_TOKENS = 1500
CHUNKS = PROMPT_TOKENS // CHUNK_SIZE
L1_GB = 24 / 1024  # two prompts of 10 MiB each
TEXTS = [prompt(f"Iota{i}", PROMPT_TOKENS) for i in range(20)]


@dataclass(frozen=True)
class L2Setup:
    """One engine on a sidecar whose L1 holds a tenth of what the tests ask for."""

    server: Server
    engine: Engine

    def total(self, name: str) -> int:
        return int(self.server.metrics().total(f"lmcache_mp_{name}"))

    def wait_written(self) -> None:
        """Until nothing waits to be written down."""
        names = ("num_queued_l2_stores", "num_inflight_l2_stores")
        wait_until(lambda: not any(self.total(name) for name in names), "L2 written")


def adapter(kind: str, directory: Path) -> dict[str, Any]:
    if kind == "fs":
        return {"type": "fs", "base_path": str(directory), "min_free_gb": 0}
    params = {"file_path": str(directory), "use_direct_io": "true"}
    return {"type": kind, "backend": "POSIX", "backend_params": params, "min_free_gb": 0}


@pytest.fixture(
    scope="module", params=[("lmcache_driven", "fs"), ("engine_driven", "nixl_store")], ids="-".join
)
def setup(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[L2Setup]:
    mode: TransferMode
    mode, kind = request.param
    if kind == "nixl_store":
        pytest.importorskip("nixl")
    logs = tmp_path_factory.mktemp(f"l2-{kind}")
    spec = json.dumps(adapter(kind, logs / "l2"))
    server = Server(logs, "--l2-adapter", spec, l1_size_gb=L1_GB, chunk_size=CHUNK_SIZE)
    client = CacheServer(
        port=server.port, transfer_mode=mode, heartbeat_seconds=1, timeout_seconds=120
    )
    with engine_on(server, model, roles.aggregated(client), logs / "vllm.log") as engine:
        yield L2Setup(server, engine)


@pytest.fixture(scope="module")
def computed(setup: L2Setup) -> list[tuple[int, ...]]:
    """What the engine says to each text while nothing is cached; all of it is in L2 then."""
    answers = []
    for i, text in enumerate(TEXTS):
        answers.append(ask(setup.engine, text).token_ids)
        wanted = (i + 1) * CHUNKS
        wait_until(
            lambda wanted=wanted: setup.total("l1_write_chunks_total") >= wanted, "prompt stored"
        )
        setup.wait_written()
    assert setup.total("l2_objects") == len(TEXTS) * CHUNKS
    return answers


def ask_all_again(setup: L2Setup, computed: list[tuple[int, ...]]) -> int:
    """Every text is a whole hit, and its output what was computed; tokens that came from L2."""
    hits, from_l2 = (setup.total(f"lookup_{which}_tokens_total") for which in ("hit", "hit_l2"))
    assert [ask(setup.engine, text).token_ids for text in TEXTS] == computed
    tokens = len(TEXTS) * CHUNKS * CHUNK_SIZE
    assert setup.total("lookup_hit_tokens_total") - hits == tokens
    return setup.total("lookup_hit_l2_tokens_total") - from_l2


def test_what_the_l1_does_not_hold_is_served_from_l2(
    setup: L2Setup, computed: list[tuple[int, ...]]
) -> None:
    from_l2 = ask_all_again(setup, computed)

    assert from_l2 > len(TEXTS) * CHUNKS * CHUNK_SIZE * 0.8
    assert setup.total("l2_corrupt_objects_total") == 0
    setup.wait_written()
    setup.server.assert_no_leases()


def wait_until_asked(setup: L2Setup) -> None:
    """Until the engine looks prompts up again: its scheduler trusts us from its next ping on,
    whether or not the worker, which pings by itself, has registered before that."""
    for i in itertools.count():
        before = setup.total("lookups_requests_total")
        ask(setup.engine, prompt(f"Kappa{i}", CHUNK_SIZE + 1))
        if setup.total("lookups_requests_total") > before:
            return
        assert i < 60, "the engine does not look anything up after the restart"
        time.sleep(0.5)


def test_a_restart_loses_nothing(setup: L2Setup, computed: list[tuple[int, ...]]) -> None:
    assert setup.server.terminate() == 0
    setup.server.start()
    wait_until(lambda: len(setup.server.instances()) == 1, "the worker registered again")
    wait_until_asked(setup)

    assert ask_all_again(setup, computed) == len(TEXTS) * CHUNKS * CHUNK_SIZE
    setup.server.assert_no_leases()
