"""vLLM's own connector over the sidecar, in a worker without lmcache.

The engine has two LoRA adapters beside its model: what lmcache's client would mix up. More models,
releases and faults: `python -m tests.e2e.native_campaign`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo.engine import MODEL_NAME, Engine
from tests.support.native_vllm import (
    BLOCK,
    Answer,
    ask,
    engines,
    loaded,
    native_engine,
    no_lmcache,
    nothing_is_held,
    objects,
)
from tests.support.server import Server, wait_until
from tests.support.tiny_models import RANK, make_adapter

from .conftest import prompt

pytestmark = pytest.mark.engine

MODELS = (MODEL_NAME, "first", "second")
TEXT = prompt("Rho", 1500)
CHUNK = 2 * BLOCK


@dataclass
class Setup:
    """`cold` is what each model says of TEXT, by an engine that has ended since."""

    server: Server
    engine: Engine
    cold: dict[str, Answer]

    def ask(self, text: str, model: str = MODEL_NAME) -> tuple[Answer, int]:
        """What `model` says, and how many tokens of the text were loaded for it."""
        before = loaded(self.engine)
        answer = ask(self.engine, text, model=model)
        return answer, loaded(self.engine) - before

    def ask_new(self, text: str) -> Answer:
        """What is said of a text that nobody knows, once the sidecar has it."""
        before = objects(self.server)
        answer, hits = self.ask(text)
        assert hits == 0
        wait_until(lambda: objects(self.server) >= before + len(text) // CHUNK, "it is stored")
        return answer


@pytest.fixture(scope="module")
def setup(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    """Costs the start of two engines, one after the other."""
    folder = tmp_path_factory.mktemp("native")
    adapters = [f"{name}={make_adapter(folder / name, i)}" for i, name in enumerate(MODELS[1:])]
    flags = [
        *("--enable-lora", "--max-lora-rank", str(RANK), "--max-loras", "2"),
        *("--lora-modules", *adapters),
    ]
    server = Server(folder, l1_size_gb=1)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        stack.enter_context(no_lmcache(folder))
        cold = {}
        with native_engine(
            server, model, folder / "cold.log", *flags, blocks_per_chunk=2
        ) as engine:
            for name in MODELS:
                cold[name] = ask(engine, TEXT, model=name)
            assert loaded(engine) == 0
            stored = len(MODELS) * (len(TEXT) // CHUNK)
            wait_until(lambda: objects(server) == stored, "each model has objects of its own")
        warm = native_engine(server, model, folder / "warm.log", *flags, blocks_per_chunk=2)
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
