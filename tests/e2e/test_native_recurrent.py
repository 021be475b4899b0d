"""A model with recurrent states over the sidecar, by vLLM's own connector.

One KV group has states, the other keys and values; a hit needs both. vLLM keeps states where its
own prefix cache is on, which forgets all before a prompt comes again.
"""

from __future__ import annotations

import os
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from unittest.mock import patch

import pytest

from examples.demo.engine import Engine
from tests.support.native_vllm import (
    BLOCK,
    Answer,
    ask,
    engines,
    loaded,
    native_engine,
    no_lmcache,
    nothing_is_held,
)
from tests.support.server import Server, wait_until
from tests.support.tiny_models import make_recurrent_model

from .conftest import prompt

pytestmark = pytest.mark.engine

# What vLLM finds of a prompt's last block, where that is smaller than a block.
UNIT = 32
FLAGS = (
    *("--no-disable-hybrid-kv-cache-manager", "--enable-prefix-caching"),
    *("--prefix-match-unit", str(UNIT)),
)
# Of prompts, by their length, what is loaded: complete blocks, or where there is none the tail.
LOADED = {100: 100 // UNIT * UNIT, 700: 700 // BLOCK * BLOCK, 1500: 1500 // BLOCK * BLOCK}


@dataclass
class Setup:
    server: Server
    engine: Engine

    def ask_again(self, text: str) -> tuple[Answer, int]:
        """Without what vLLM itself has; and how many tokens were loaded for it."""
        before = loaded(self.engine)
        reset = urllib.request.Request(f"{self.engine.url}/reset_prefix_cache", method="POST")
        urllib.request.urlopen(reset, timeout=60).close()
        answer = ask(self.engine, text)
        return answer, loaded(self.engine) - before


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    folder = tmp_path_factory.mktemp("recurrent")
    model, server = make_recurrent_model(folder / "model"), Server(folder, l1_size_gb=1)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        stack.enter_context(no_lmcache(folder))
        stack.enter_context(patch.dict(os.environ, {"VLLM_SERVER_DEV_MODE": "1"}))
        engine = native_engine(server, model, folder / "vllm.log", *FLAGS, budget_ms=5000)
        yield Setup(server, stack.enter_context(engine))


@pytest.mark.parametrize("length", LOADED)
def test_states_and_a_prompts_last_part_are_found(setup: Setup, length: int) -> None:
    text = prompt(f"Zeta {length}", length)
    computed = ask(setup.engine, text)

    def found() -> bool:
        """A part is found where not all of it is stored yet; whatever is found is right."""
        answer, tokens = setup.ask_again(text)
        assert answer == computed
        return tokens == LOADED[length]

    wait_until(found, f"{LOADED[length]} tokens to be loaded", 120)
    [engine] = engines(setup.server)
    assert engine["ready"]
    wait_until(lambda: nothing_is_held(setup.server), "all pins are given back")
