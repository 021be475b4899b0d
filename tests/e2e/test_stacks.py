"""The stacks of launch/ with real Dynamo, vLLM, NIXL and sidecar, on the CPU."""

import json
import os
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from examples.counters import counter
from tests.support.native_vllm import BLOCK, no_lmcache
from tests.support.server import REPO, wait_until
from tests.support.stack import Stack

from .conftest import prompt

DYNAMO = REPO / ".venv" / "dynamo"
CHUNK = 256
CHAT = "chat: "
# From less than a block to almost the model's longest.
PROMPTS = [
    *("hello", prompt("Iota", 300), prompt("Kappa", 1500), prompt("Lambda", 3000)),
    *(CHAT + "who are you?", CHAT + prompt("My", 700)),
]
STORED = [text for text in PROMPTS if len(text) > CHUNK]

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not DYNAMO.exists(), reason="needs `scripts/install.py dynamo`"),
]


@dataclass(frozen=True)
class Answer:
    """The tokens of a greedy completion as text, with their log probabilities."""

    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]

    def same_as(self, other: "Answer") -> bool:
        return self.tokens == other.tokens and self.logprobs == pytest.approx(
            other.logprobs, abs=1e-4
        )


def ask(url: str, text: str) -> Answer:
    if not text.startswith(CHAT):
        found = post(f"{url}/completions", {"prompt": text, "logprobs": 1})["logprobs"]
        return Answer(tuple(found["tokens"]), tuple(found["token_logprobs"]))
    messages = [{"role": "user", "content": text.removeprefix(CHAT)}]
    body = {"messages": messages, "logprobs": True, "top_logprobs": 1}
    found = post(f"{url}/chat/completions", body)["logprobs"]["content"]
    return Answer(tuple(x["token"] for x in found), tuple(x["logprob"] for x in found))


def post(url: str, body: dict[str, Any]) -> Any:
    body |= {"model": "small", "max_tokens": 12, "temperature": 0, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=180) as answer:
        return json.load(answer)["choices"][0]


def ask_all(url: str, texts: list[str]) -> list[Answer]:
    """Three at a time."""
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda text: ask(url, text), texts))


class Running:
    """A real stack whose workers have no prefix cache of their own."""

    def __init__(self, topology: str, *flags: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kvd"))
        self.stack = Stack(topology, self.directory).start("--no-prefix-caching", *flags)
        self.stack.wait_ready()
        status = self.stack.status()
        self.url = f"{status['url']}/v1"
        self.sidecar = self.port_url(status, "sidecar")

    def port_url(self, status: Any, program: str) -> str:
        (row,) = [row for row in status["programs"] if row["program"] == program]
        return f"http://127.0.0.1:{row['ports']['http']}"

    def worker(self, program: str) -> str:
        return self.port_url(self.stack.status(), program)

    def sidecar_counter(self, name: str) -> int:
        return counter(self.sidecar, f"lmcache_mp_{name}_total")

    def kill(self, program: str) -> None:
        """SIGKILL; returns once a new one is ready."""
        before = self.stack.output().count(f"{program} is ready")
        os.kill(self.stack.pids()[program], SIGKILL)
        wait_until(
            lambda: self.stack.output().count(f"{program} is ready") > before,
            f"{program} is back",
            timeout=300,
        )
        # The frontend has to find the new worker and to forget the old one.
        wait_until(lambda: self.answers(), "requests are served again", timeout=120)

    def answers(self) -> bool:
        try:
            return bool(ask(self.url, "hello").tokens)
        except OSError:
            return False

    def close(self) -> None:
        if self.directory.exists():
            assert self.stack.end() == 0
            assert self.stack.left() == []
            shutil.rmtree(self.directory)


@pytest.fixture(scope="module")
def aggregated() -> Iterator[Running]:
    running = Running("agg")
    yield running
    running.close()


@pytest.fixture(scope="module")
def computed(aggregated: Running) -> list[Answer]:
    """What one engine computes for PROMPTS; afterwards the sidecar has their KV."""
    stored = sum(len(text) // CHUNK for text in PROMPTS)
    answers = [ask(aggregated.url, text) for text in PROMPTS]
    assert aggregated.sidecar_counter("lookup_hit_tokens") == 0
    wait_until(
        lambda: aggregated.sidecar_counter("l1_write_chunks") >= stored, "the prompts are stored"
    )
    return answers


def assert_same(got: list[Answer], expected: list[Answer]) -> None:
    for text, one, other in zip(PROMPTS, got, expected, strict=True):
        assert one.same_as(other), text[:40]


def test_a_model_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory(prefix="kvd") as directory:
        stack = Stack("agg", Path(directory)).start("--cpu", "--model", "nobody/no-such-model")
        assert stack.wait() == 1
        assert stack.left() == []
        why, last = stack.output().splitlines()[-2:]
    assert "LocalEntryNotFoundError: Cannot find" in why
    assert "FAILED: worker-0 ended with exit code 1 while the stack was starting" in last


def test_aggregated_output_from_the_cache(aggregated: Running, computed: list[Answer]) -> None:
    before = aggregated.sidecar_counter("lookup_hit_tokens")
    assert_same(ask_all(aggregated.url, PROMPTS), computed)
    hit = aggregated.sidecar_counter("lookup_hit_tokens") - before
    assert hit >= sum(len(text) // CHUNK for text in STORED) * CHUNK
    shown = aggregated.stack.script("status", "--name", aggregated.stack.name).stdout
    assert re.search(r"^cache: hit rate [1-9]\d?% of ", shown, re.MULTILINE), shown


def test_a_killed_worker_comes_back_to_a_warm_cache(
    aggregated: Running, computed: list[Answer]
) -> None:
    aggregated.kill("worker-0")
    assert_same(ask_all(aggregated.url, PROMPTS), computed)
    assert (
        loaded(aggregated.worker("worker-0")) >= sum(len(text) // CHUNK for text in STORED) * CHUNK
    )


def test_requests_outlive_a_killed_sidecar(aggregated: Running, computed: list[Answer]) -> None:
    aggregated.kill("sidecar")
    assert_same(ask_all(aggregated.url, PROMPTS), computed)

    def hits() -> bool:
        assert_same(ask_all(aggregated.url, PROMPTS), computed)
        return aggregated.sidecar_counter("lookup_hit_tokens") > 0

    wait_until(hits, "hits in the new sidecar", timeout=180)


@pytest.fixture
def disaggregated(aggregated: Running, computed: list[Answer]) -> Iterator[Running]:
    """On two cores: after the aggregated stack has ended."""
    aggregated.close()
    running = Running("disagg")
    yield running
    running.close()


def test_disaggregated_output_equals_that_of_one_engine(
    disaggregated: Running, computed: list[Answer]
) -> None:
    assert_same(ask_all(disaggregated.url, PROMPTS), computed)
    tokens = sum(map(len, PROMPTS))
    decode = disaggregated.worker("decode-0")
    assert counter(decode, "vllm:nixl_bytes_transferred_sum") > 0
    assert transferred(decode) >= tokens - CHUNK
    chunks = sum(len(text) // CHUNK for text in PROMPTS)
    wait_until(
        lambda: disaggregated.sidecar_counter("l1_write_chunks") >= chunks, "prompts are stored"
    )

    disaggregated.kill("prefill-0")
    before = transferred(decode)
    assert_same(ask_all(disaggregated.url, PROMPTS), computed)

    assert (
        loaded(disaggregated.worker("prefill-0"))
        >= sum(len(text) // CHUNK for text in STORED) * CHUNK
    )
    assert transferred(decode) - before >= tokens - CHUNK


def transferred(worker: str) -> int:
    """Prompt tokens whose KV this worker got from elsewhere."""
    name = "vllm:prompt_tokens_by_source_total"
    return counter(worker, name, source="external_kv_transfer")


def test_disaggregated_with_vllms_own_connector(
    aggregated: Running, computed: list[Answer], tmp_path: Path
) -> None:
    """Prefill has it beside NIXL in a MultiConnector, and no lmcache."""
    aggregated.close()
    stored = sum(len(text) // BLOCK for text in PROMPTS)
    with no_lmcache(tmp_path):
        running = Running("disagg", "--client", "native")
        try:
            assert_same(ask_all(running.url, PROMPTS), computed)
            wait_until(
                lambda: running.sidecar_counter("l1_write_chunks") >= stored, "prompts are stored"
            )
            decode, prefill = running.worker("decode-0"), running.worker("prefill-0")
            hits, moved = loaded(prefill), transferred(decode)
            assert_same(ask_all(running.url, PROMPTS), computed)
            assert loaded(prefill) - hits >= stored * BLOCK
            assert transferred(decode) - moved >= sum(map(len, PROMPTS)) - CHUNK
        finally:
            running.close()


def loaded(worker: str) -> int:
    """Tokens that this worker took from the sidecar."""
    return counter(worker, "vllm:external_prefix_cache_hits_total")


def test_plain_vllm_has_the_same_cache() -> None:
    running = Running("vllm")
    texts = [PROMPTS[0], PROMPTS[2]]
    try:
        first = [ask(running.url, text) for text in texts]
        wait_until(
            lambda: running.sidecar_counter("l1_write_chunks") >= len(PROMPTS[2]) // CHUNK,
            "the prompt is stored",
        )
        again = [ask(running.url, text) for text in texts]
        assert all(one.same_as(other) for one, other in zip(again, first, strict=True))
        assert running.sidecar_counter("lookup_hit_tokens") == len(PROMPTS[2]) // CHUNK * CHUNK
    finally:
        running.close()
