"""LoRA adapters on one worker: right with a cache_salt for each, and wrong without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from connectors import roles
from connectors.lmcache_mp import CacheServer
from examples.counters import counter
from examples.demo.client import complete
from examples.demo.engine import MODEL_NAME, Engine
from tests.support.server import Server, wait_until
from tests.support.tiny_models import RANK, make_adapter

from .conftest import CHUNK_SIZE, MAX_TOKENS, engine_on, prompt

pytestmark = pytest.mark.engine

ADAPTERS = ("first", "second")
CHUNKS = 3


@dataclass(frozen=True)
class Setup:
    server: Server
    engine: Engine

    def ask(self, text: str, model: str, salt: str = "") -> tuple[tuple[int, ...], int]:
        """What `model` says, and how many tokens of the text were loaded for it."""
        fields = {"model": model} | ({"cache_salt": salt} if salt else {})
        before = counter(self.engine.url, "vllm:external_prefix_cache_hits_total")
        answer = complete(self.engine.url, text, MAX_TOKENS, fields=fields)
        after = counter(self.engine.url, "vllm:external_prefix_cache_hits_total")
        return answer.token_ids, after - before

    def stored(self) -> int:
        return int(self.server.metrics().total("lmcache_mp_l1_write_chunks_total"))


@pytest.fixture(scope="module")
def setup(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("adapters")
    server = Server(folder, l1_size_gb=1, chunk_size=CHUNK_SIZE)
    client = roles.aggregated(CacheServer(port=server.port))
    made = [f"{name}={make_adapter(folder / name, i)}" for i, name in enumerate(ADAPTERS)]
    flags = ["--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "2"]
    log = folder / "vllm.log"
    with engine_on(server, model, client, log, [*flags, "--lora-modules", *made]) as engine:
        yield Setup(server, engine)


def test_a_salt_for_each_adapter_gives_each_its_own_kv(setup: Setup) -> None:
    text = prompt("Kappa", CHUNKS * CHUNK_SIZE + 20)
    computed = {}
    for name in (MODEL_NAME, *ADAPTERS):
        before = setup.stored()
        computed[name], loaded = setup.ask(text, name, salt=f"of-{name}")
        assert loaded == 0, "KV of another adapter"
        wait_until(lambda before=before: setup.stored() >= before + CHUNKS, "the prompt stored")
    assert len(set(computed.values())) == 3

    for name, answer in computed.items():
        assert setup.ask(text, name, salt=f"of-{name}") == (answer, CHUNKS * CHUNK_SIZE)


def test_without_salts_an_adapter_gets_the_kv_of_another(setup: Setup) -> None:
    """Why `--enable-lora` is refused. A client that gets this right needs no refusal."""
    text = prompt("Lambda", CHUNKS * CHUNK_SIZE + 20)
    right, _ = setup.ask(text, "second", salt="alone")
    before = setup.stored()
    setup.ask(text, "first")
    wait_until(lambda: setup.stored() >= before + CHUNKS, "the prompt stored")

    answer, loaded = setup.ask(text, "second")
    assert loaded == CHUNKS * CHUNK_SIZE
    assert answer != right
