"""A model whose layers see a window or all of a prompt, with vLLM's hybrid KV cache manager."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from connectors import roles
from connectors.lmcache_mp import CacheServer
from examples.counters import counter
from examples.demo.engine import Engine
from tests.support.server import Server, wait_until
from tests.support.tiny_models import HYBRID_GROUPS, WINDOW, make_hybrid_model

from .conftest import CHUNK_SIZE, ask, engine_on, prompt

pytestmark = pytest.mark.engine

FLAGS = [
    "--no-disable-hybrid-kv-cache-manager",
    # So that a prompt is computed in several steps, and the blocks before the window are given up
    # on the way.
    *("--max-num-batched-tokens", "512"),
]


@dataclass(frozen=True)
class Setup:
    server: Server
    engine: Engine

    def ask_new(self, text: str, known: int = 0) -> tuple[int, ...]:
        """What a text is completed with, once the sidecar has all of it; it had `known` chunks."""
        before = self._stored()
        answer = ask(self.engine, text).token_ids
        new = len(text) // CHUNK_SIZE - known
        wait_until(lambda: self._stored() >= before + new, "the prompt stored")
        return answer

    def ask_known(self, text: str) -> tuple[tuple[int, ...], int]:
        """What a text is completed with, and how many of its tokens vLLM loaded."""
        before = self._loaded()
        answer = ask(self.engine, text).token_ids
        return answer, self._loaded() - before

    def forget(self) -> None:
        self.server.request("/cache/clear", {"tier": "l1", "force": True})

    def _stored(self) -> float:
        return self.server.metrics().total("lmcache_mp_l1_write_chunks_total")

    def _loaded(self) -> int:
        return counter(self.engine.url, "vllm:external_prefix_cache_hits_total")


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("hybrid")
    server = Server(folder, l1_size_gb=1, chunk_size=CHUNK_SIZE)
    # The stock client knows several groups in this mode only.
    client = CacheServer(port=server.port, transfer_mode="lmcache_driven")
    model, log = make_hybrid_model(folder / "model"), folder / "vllm.log"
    with engine_on(server, model, roles.aggregated(client), log, FLAGS) as engine:
        yield Setup(server, engine)


def test_the_cached_output_equals_the_computed_one(setup: Setup) -> None:
    texts = [prompt(f"Nu{n}", n) for n in (WINDOW - 84, 4 * WINDOW + 84, 3500)]
    computed = [setup.ask_new(text) for text in texts]

    for text, answer in zip(texts, computed, strict=True):
        assert setup.ask_known(text) == (answer, len(text) // CHUNK_SIZE * CHUNK_SIZE)
    [worker] = setup.server.status()["cache_context_meta"].values()
    assert len(worker["kv_cache_layout"]["kernel_groups"]) == HYBRID_GROUPS
    setup.server.assert_no_leases()


def test_prefixes_of_a_prompt_are_hits(setup: Setup) -> None:
    """Their windows were given up before all of the prompt was computed, but not before stored."""
    text = prompt("Xi", 3000)
    prefixes = [text[:length] for length in (700, 1500, 2800)]
    setup.ask_new(text)

    cached = [setup.ask_known(prefix) for prefix in prefixes]

    setup.forget()
    for prefix, (answer, loaded) in zip(prefixes, cached, strict=True):
        assert loaded == len(prefix) // CHUNK_SIZE * CHUNK_SIZE
        assert answer == ask(setup.engine, prefix).token_ids
        setup.forget()


def test_a_longer_prompt_goes_on_from_its_prefix(setup: Setup) -> None:
    text = prompt("Omicron", 3000)
    setup.ask_new(text[:1500])
    chunks = 1500 // CHUNK_SIZE

    over_the_prefix = setup.ask_new(text, known=chunks)

    assert setup.ask_known(text) == (over_the_prefix, 3000 // CHUNK_SIZE * CHUNK_SIZE)
    setup.forget()
    assert setup.ask_new(text) == over_the_prefix
    setup.server.assert_no_leases()
