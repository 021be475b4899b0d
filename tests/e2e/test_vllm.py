"""What the users of a stock vLLM with its stock connector get from the sidecar."""

import itertools
import threading
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import pytest

from examples.counters import counter
from examples.demo.client import Completion
from examples.demo.engine import Engine
from tests.support.server import Server, wait_until

from .conftest import CHUNK_SIZE, Setup, ask, no_segments_left, prompt

pytestmark = pytest.mark.engine


def chunks(text: str) -> int:
    return len(text) // CHUNK_SIZE


def ask_and_wait_stored(setup: Setup, engine: Engine, text: str) -> Completion:
    """The completion of a text that the sidecar does not have yet, once it has it."""
    before = setup.stored_chunks()
    completion = ask(engine, text)
    wait_until(lambda: setup.stored_chunks() >= before + chunks(text), "the prompt stored")
    return completion


def retrieved(engine: Engine) -> int:
    return counter(engine.url, "vllm:external_prefix_cache_hits_total")


def test_the_cached_output_equals_the_computed_one(setup: Setup) -> None:
    texts = [prompt("Alpha", 3500), prompt("Beta", 1500), prompt("Gamma", 300)]
    computed = [ask_and_wait_stored(setup, setup.first, text) for text in texts]
    hits, loaded = setup.hit_tokens(), retrieved(setup.first)

    cached = [ask(setup.first, text) for text in texts]

    expected = sum(chunks(text) for text in texts) * CHUNK_SIZE
    assert setup.hit_tokens() - hits == expected
    assert retrieved(setup.first) - loaded == expected
    assert [c.token_ids for c in cached] == [c.token_ids for c in computed]
    setup.server.assert_no_leases()


def test_a_longer_prompt_reuses_its_prefix(setup: Setup) -> None:
    longer = prompt("Delta", 3000)
    ask_and_wait_stored(setup, setup.first, longer[:1500])
    hits = setup.hit_tokens()

    over_the_prefix = ask_and_wait_stored_rest(setup, longer, known=1500)

    assert setup.hit_tokens() - hits == 1500 // CHUNK_SIZE * CHUNK_SIZE
    assert ask(setup.first, longer).token_ids == over_the_prefix.token_ids


def ask_and_wait_stored_rest(setup: Setup, text: str, known: int) -> Completion:
    before = setup.stored_chunks()
    completion = ask(setup.first, text)
    new = chunks(text) - known // CHUNK_SIZE
    wait_until(lambda: setup.stored_chunks() >= before + new, "the rest stored")
    return completion


def test_a_second_process_hits_what_the_first_stored(setup: Setup) -> None:
    text = prompt("Epsilon", 2000)
    computed = ask_and_wait_stored(setup, setup.first, text)
    before = retrieved(setup.second)

    cached = ask(setup.second, text)

    assert retrieved(setup.second) - before == chunks(text) * CHUNK_SIZE
    assert cached.token_ids == computed.token_ids


class Load:
    """Clients that keep asking `engine` for `texts` in turn, within a `with` block.

    Every request must succeed; `answers` are those so far.
    """

    def __init__(self, engine: Engine, texts: list[str], clients: int) -> None:
        self.answers: list[tuple[str, Completion]] = []
        self._engine = engine
        self._turns = itertools.cycle(texts)
        self._failures: list[Exception] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._client) for _ in range(clients)]

    def _client(self) -> None:
        while not self._stop.is_set():
            text = next(self._turns)
            try:
                self.answers.append((text, ask(self._engine, text)))
            except Exception as error:
                self._failures.append(error)
                self._stop.set()

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(lambda: self._failures or condition(), what, timeout=180)
        assert not self._failures

    def wait_for_answers(self, more: int, what: str) -> None:
        enough = len(self.answers) + more
        self.wait_for(lambda: len(self.answers) >= enough, what)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        assert not self._failures


def test_requests_outlive_the_sidecar_and_hits_come_back(setup: Setup) -> None:
    texts = [prompt(f"Zeta{i}", 1200) for i in range(6)]
    expected = {text: ask_and_wait_stored(setup, setup.first, text).token_ids for text in texts}

    if setup.mode == "engine_driven":
        # Between requests: the stock client waits for its prepare inside a step of the engine,
        # and ends the engine if the reply was lost in the crash (README, limits).
        setup.server.kill()
        setup.server.start()
    with Load(setup.first, texts, clients=3) as load:
        if setup.mode == "lmcache_driven":
            load.wait_for_answers(6, "requests under way")
            setup.server.kill()
            load.wait_for_answers(6, "requests served without the sidecar")
            setup.server.start()
        load.wait_for(lambda: setup.hit_tokens() > 0, "hits after the restart")

    assert all(answer.token_ids == expected[text] for text, answer in load.answers)
    assert_both_are_back(setup)
    setup.server.assert_no_leases()


def assert_both_are_back(setup: Setup) -> None:
    """Each engine registers again and finds what the other stores."""
    for i in itertools.count():
        text = prompt(f"Eta{i}", 600)
        before = retrieved(setup.second)
        ask(setup.first, text)
        ask(setup.second, text)
        if retrieved(setup.second) > before:
            return
        assert i < 60, "the second engine hits nothing of the first after the restart"
        time.sleep(1)


def test_a_killed_engine_leaves_nothing_behind(setup: Setup) -> None:
    """The last of the module: it ends `setup.second`."""
    texts = [prompt(f"Theta{i}", 3000) for i in range(30)]
    ask(setup.first, texts[0])
    ask(setup.second, texts[0])
    wait_until(lambda: len(setup.server.instances()) == 2, "both engines registered")
    mapped = kv_mappings(setup.server)
    assert len(mapped) == (2 if setup.mode == "lmcache_driven" else 0)

    kill_while_transferring(setup, texts)

    wait_until(lambda: len(setup.server.instances()) == 1, "the dead worker forgotten", 120)
    setup.server.assert_no_leases()
    wait_until(lambda: len(kv_mappings(setup.server)) == len(mapped) // 2, "its KV unmapped")
    maybe_cached = [ask(setup.first, text).token_ids for text in texts[:6]]
    setup.server.request("/cache/clear", {"tier": "l1", "force": True})
    assert maybe_cached == [ask(setup.first, text).token_ids for text in texts[:6]]


def kill_while_transferring(setup: Setup, texts: list[str]) -> None:
    """SIGKILL to the second engine under load.

    At a moment at which the sidecar holds leases for it, if one is seen: they are short.
    """
    turns = itertools.cycle(texts)

    def client() -> None:
        while True:
            try:
                ask(setup.second, next(turns))
            except (OSError, HTTPException, RuntimeError):  # it was killed
                return

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        if setup.server.leases() > 0:
            break
    with no_segments_left(setup.second):
        setup.second.process.kill()
    for thread in threads:
        thread.join()


def kv_mappings(server: Server) -> set[str]:
    """The workers' KV segments that the sidecar has mapped."""
    assert server.process is not None
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    return {line.split(maxsplit=5)[5] for line in maps.splitlines() if "lmcache_kv_" in line}
