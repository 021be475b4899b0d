"""vLLM's own connector over the sidecar, in a worker without lmcache.

The engine has two LoRA adapters beside its model, and takes prompt embeddings: what lmcache's
client would mix up. Its own cache holds little, so that it preempts. More models, releases and
faults: `python -m tests.e2e.native_campaign`.
"""

from __future__ import annotations

import base64
import io
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from examples.counters import counter
from examples.demo.engine import MODEL_NAME, Engine
from tests.support.l2 import fs_flags
from tests.support.native_vllm import (
    BLOCK,
    Answer,
    ask,
    ask_together,
    engines,
    loaded,
    native_engine,
    no_lmcache,
    nothing_is_held,
    objects,
)
from tests.support.server import Server, wait_until
from tests.support.tiny_models import HIDDEN, RANK, make_adapter

from .conftest import prompt

pytestmark = pytest.mark.engine

MODELS = (MODEL_NAME, "first", "second")
TEXT = prompt("Rho", 1500)
CHUNK = 2 * BLOCK
# On a busy machine an answer takes its time.
DOOR = {"blocks_per_chunk": 2, "budget_ms": 5000}
# Of vLLM's own cache: what its longest prompt takes, and little more.
BLOCKS = 36
MORE_TOKENS = 24
EMBEDDINGS = 600
# Of the small one: four chunks, with their headers.
L1_GB = 4 * (2 * 2**20 + 4096) / 2**30


@dataclass
class Setup:
    """`cold` is what each model says of TEXT, by an engine that has ended since."""

    server: Server
    engine: Engine
    cold: dict[str, Answer]

    def ask(self, text: str | None, model: str = MODEL_NAME, **fields: Any) -> tuple[Answer, int]:
        """What `model` says, and how many tokens of the input were loaded for it."""
        before = loaded(self.engine)
        answer = ask(self.engine, text, model=model, **fields)
        return answer, loaded(self.engine) - before

    def ask_new(self, text: str | None, **fields: Any) -> Answer:
        """What is said of an input that nobody knows, once the sidecar has it."""
        before = objects(self.server)
        answer, hits = self.ask(text, **fields)
        assert hits == 0
        chunks = (len(text) if text else EMBEDDINGS) // CHUNK
        wait_until(lambda: objects(self.server) >= before + chunks, "it is stored")
        return answer

    def keeps(self, count: int, text: str) -> bool:
        """Whether L2 has so many objects. Else `text` is asked for once more.

        A chunk is not stored where no slot is at hand.
        """
        for _ in range(100):
            if total(self.server, "l2_objects") >= count:
                return True
            time.sleep(0.02)
        self.ask(text, max_tokens=2)
        return False


@pytest.fixture(scope="module")
def setup(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """Costs the start of two engines, one after the other."""
    folder = tmp_path_factory.mktemp("native")
    adapters = [f"{name}={make_adapter(folder / name, i)}" for i, name in enumerate(MODELS[1:])]
    flags = [
        *("--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "2"),
        *("--lora-modules", *adapters),
        *("--enable-prompt-embeds", "--num-gpu-blocks-override", str(BLOCKS)),
    ]
    server = Server(folder, l1_size_gb=1)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        stack.enter_context(no_lmcache(folder))
        cold = {}
        with native_engine(server, model, folder / "cold.log", *flags, **DOOR) as engine:
            for name in MODELS:
                cold[name] = ask(engine, TEXT, model=name)
            assert loaded(engine) == 0
            stored = len(MODELS) * (len(TEXT) // CHUNK)
            wait_until(lambda: objects(server) == stored, "each model has objects of its own")
        warm = native_engine(server, model, folder / "warm.log", *flags, **DOOR)
        yield Setup(server, stack.enter_context(warm), cold)


def test_a_restarted_worker_goes_on_with_what_was_stored(setup: Setup) -> None:
    """Each adapter with its own."""
    assert len({answer.tokens for answer in setup.cold.values()}) == len(MODELS)

    for name, computed in setup.cold.items():
        assert setup.ask(TEXT, name) == (computed, len(TEXT) // CHUNK * CHUNK)
    wait_until(lambda: nothing_is_held(setup.server), "all pins are given back")


def test_a_prompt_goes_on_from_its_prefix(setup: Setup) -> None:
    longer = prompt("Sigma", 2000)
    setup.ask_new(longer[:1000])

    answer, hits = setup.ask(longer)

    assert hits == 1000 // CHUNK * CHUNK
    setup.server.request("/cache/clear", {"tier": "l1", "force": True})
    assert setup.ask(longer) == (answer, 0)


def test_prompt_embeddings_are_told_apart(setup: Setup) -> None:
    """Of one length, whose tokens are all alike; each finds its own again."""
    computed = [setup.ask_new(None, prompt_embeds=embeddings(number)) for number in (0, 1)]
    assert computed[0] != computed[1]

    for number, answer in enumerate(computed):
        found = setup.ask(None, prompt_embeds=embeddings(number))
        assert found == (answer, EMBEDDINGS // CHUNK * CHUNK)


def embeddings(number: int) -> str:
    """EMBEDDINGS vectors as vLLM's API takes them; each `number` has others."""
    random = torch.Generator().manual_seed(number)
    encoded = io.BytesIO()
    torch.save(torch.randn(EMBEDDINGS, HIDDEN, generator=random) * 0.08, encoded)
    return base64.b64encode(encoded.getvalue()).decode()


def test_a_salt_keeps_a_prompt_apart(setup: Setup) -> None:
    text, found = prompt("Chi", 600), 600 // CHUNK * CHUNK
    answer = setup.ask_new(text)

    before = objects(setup.server)
    assert setup.ask(text, cache_salt="a secret") == (answer, 0)
    wait_until(lambda: objects(setup.server) > before + 1, "it is stored once more")

    assert setup.ask(text, cache_salt="a secret") == (answer, found)
    assert setup.ask(text, cache_salt="another") == (answer, 0)


def test_what_was_preempted_comes_back(setup: Setup) -> None:
    """Five prompts fill vLLM's cache to the last block, and each needs one more to go on."""
    blocks = (BLOCKS - 1) // 5
    texts = [prompt(f"Psi {n}", blocks * BLOCK - 4) for n in range(5)]
    alone = [setup.ask_new(text, max_tokens=MORE_TOKENS) for text in texts]
    before, hits = preemptions(setup.engine), loaded(setup.engine)

    together = ask_together(setup.engine, texts, max_tokens=MORE_TOKENS)

    assert together == alone
    assert preemptions(setup.engine) > before
    assert loaded(setup.engine) - hits >= len(texts) * (len(texts[0]) // CHUNK * CHUNK)
    wait_until(lambda: nothing_is_held(setup.server), "all pins are given back")


def preemptions(engine: Engine) -> int:
    return counter(engine.url, "vllm:num_preemptions_total")


def test_a_sidecar_that_stops_dies_and_returns_is_a_cache_that_misses(setup: Setup) -> None:
    """In the end there are hits again, without a restart of vLLM."""
    server, text = setup.server, prompt("Tau", 1200)
    answer = setup.ask_new(text)

    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    assert setup.ask(text)[0] == answer
    assert setup.ask(text)[0] == answer
    server.process.send_signal(signal.SIGCONT)
    wait_until(lambda: setup.ask(text) == (answer, 1200 // CHUNK * CHUNK), "hits again", 180)

    server.kill()
    assert setup.ask(text) == (answer, 0)
    server.start()
    wait_until(lambda: setup.ask(text) == (answer, 1200 // CHUNK * CHUNK), "hits again", 180)
    [engine] = engines(server)
    assert engine["ready"]
    wait_until(lambda: nothing_is_held(server), "all pins are given back")


def test_an_l1_of_a_tenth_of_the_prompts_is_filled_from_l2(setup: Setup, tmp_path: Path) -> None:
    """A new sidecar at the old one's address: vLLM goes on with it."""
    texts, chunks = [prompt(f"Omega {n}", 2 * CHUNK + 10) for n in range(20)], 2
    setup.server.stop()
    server = Server(tmp_path, *fs_flags(tmp_path), port=setup.server.port, l1_size_gb=L1_GB)
    try:
        small = Setup(server.start(), setup.engine, {})
        wait_until(lambda: small.ask(texts[0])[1], "it goes on", 180)
        computed = []
        for number, text in enumerate(texts, 1):
            computed.append(small.ask(text, max_tokens=2)[0])
            wait_until(lambda n=number, t=text: small.keeps(n * chunks, t), "it is in L2")
        assert total(server, "l2_objects") == len(texts) * chunks

        before = total(server, "lookup_hit_l2_tokens_total")
        for text, answer in zip(texts, computed, strict=True):
            assert small.ask(text, max_tokens=2) == (answer, chunks * CHUNK)

        from_l2 = total(server, "lookup_hit_l2_tokens_total") - before
        assert from_l2 > len(texts) * chunks * CHUNK * 0.8
        wait_until(lambda: nothing_is_held(server), "all pins are given back")
    finally:
        server.stop()


def total(server: Server, name: str) -> int:
    return int(server.metrics().total(f"lmcache_mp_{name}"))
