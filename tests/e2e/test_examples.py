"""The examples do what they show, with a real vLLM and a real sidecar."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from connectors import roles
from connectors.lmcache_mp import CacheServer
from examples.counters import SidecarCounts, sidecar_counts, vllm_counts
from examples.demo.engine import Engine
from tests.support.server import REPO, Server, free_port

from .conftest import CHUNK_SIZE, engine_on

pytestmark = pytest.mark.engine

LIMIT = 240


@dataclass(frozen=True)
class Parts:
    """What the examples are run against, and with."""

    server: Server
    engine: Engine
    model: Path

    def run(self, name: str, *arguments: object) -> str:
        """What the example prints; it must succeed."""
        done = run_example(name, *arguments, "--sidecar-url", self.server.http)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def counted(self, before: SidecarCounts) -> SidecarCounts:
        return sidecar_counts(self.server.http) - before


def run_example(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"examples.{name}", *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(REPO), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=REPO, env=env, capture_output=True, text=True, timeout=LIMIT)


@pytest.fixture(scope="module")
def parts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parts]:
    logs = tmp_path_factory.mktemp("examples")
    server = Server(logs, l1_size_gb=1, chunk_size=CHUNK_SIZE)
    transfer = roles.aggregated(CacheServer(port=server.port))
    more = ["--enable-prompt-tokens-details"]
    with engine_on(server, model, transfer, logs / "vllm.log", more) as engine:
        yield Parts(server, engine, model)


def numbers(line: str) -> list[int]:
    """The integers of a line, which may have thousands separators."""
    return [int(text.replace(",", "")) for text in re.findall(r"\d[\d,]*", line)]


def test_a_chat_finds_its_earlier_turns(parts: Parts) -> None:
    out = parts.run("chat", "--base-url", f"{parts.engine.url}/v1", "First?", "And then?", "Why?")

    turns = [numbers(line)[:5] for line in out.splitlines()[1:]]
    assert [turn for turn, *_ in turns] == [1, 2, 3]
    assert turns[0][2:] == [0, turns[0][1] // CHUNK_SIZE * CHUNK_SIZE, 0]
    for _, prompt, cached, looked_up, found in turns[1:]:
        assert looked_up == prompt // CHUNK_SIZE * CHUNK_SIZE
        assert cached == found > 0
    assert turns[2][4] >= turns[1][4] >= turns[0][3]


def test_the_gain_adds_up(parts: Parts, tmp_path: Path) -> None:
    before, vllm = sidecar_counts(parts.server.http), vllm_counts(parts.engine.url)

    out = parts.run(
        *("gain", "--base-url", parts.engine.url, "--plot", tmp_path / "gain.png"),
        *("--prefixes", 2, "--prompts", 3, "--prefix-tokens", 1024, "--output-tokens", 4),
        *("--concurrency", 1),
    )

    rows = {line[:28].strip(): line[28:] for line in out.splitlines()}
    counted = vllm_counts(parts.engine.url) - vllm
    computed, loaded = numbers(rows["computed"]), numbers(rows["from the sidecar"])
    assert sum(computed) == counted.computed
    assert sum(loaded) == counted.transferred
    assert sum(numbers(rows["found by the sidecar in L1"])) == parts.counted(before).hit_l1
    assert numbers(rows["from vLLM's own cache"]) == [0, 0]
    assert numbers(rows["prompt tokens"]) == [sum(x) for x in zip(computed, loaded, strict=True)]
    assert numbers(rows["requests done"]) == [6, 6]
    # Two prompts of three find their prefix; the second time all find all but a part of a chunk.
    assert loaded[0] >= 2 * 2 * 768
    assert computed[1] <= 6 * CHUNK_SIZE
    assert "not of this load" not in out
    assert (tmp_path / "gain.png").read_bytes().startswith(b"\x89PNG")


def test_the_second_offline_run_takes_what_the_first_stored(parts: Parts) -> None:
    before = sidecar_counts(parts.server.http)
    command = ["offline", "--model", parts.model, "--dtype", "float32"]

    runs = [parts.run(*command, "--port", parts.server.port).splitlines() for _ in range(2)]

    cold, warm = ([numbers(line)[0] for line in lines[:4]] for lines in runs)
    chunks = 3500 // CHUNK_SIZE
    assert cold == [3500, 0, 3500, chunks]
    assert warm == [3500, chunks * CHUNK_SIZE, 3500 - chunks * CHUNK_SIZE, 0]
    assert runs[0][4] == runs[1][4]
    assert parts.counted(before).chunks_stored == parts.counted(before).chunks_loaded == chunks


def test_a_url_of_something_else_is_told(parts: Parts) -> None:
    done = run_example("gain", "--base-url", parts.server.http, "--sidecar-url", parts.server.http)

    assert done.returncode == 2
    assert f"{parts.server.http}: no vllm:prompt_tokens_by_source_total" in done.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("offline", [], "required: --model"),
        ("offline", ["--model", "m", "--port", "0"], "0 is not a port"),
        ("offline", ["--model", "m", "--sidecar-url"], "refused"),
        ("chat", ["--sidecar-url"], "refused"),
        ("gain", ["--prefixes", "0"], "at least 1"),
        ("gain", ["--base-url"], "refused"),
    ],
)
def test_wrong_usage_is_one_line(name: str, arguments: list[str], why: str) -> None:
    """A last option without a value gets the URL of a port on which nobody listens."""
    if arguments and arguments[-1].endswith("-url"):
        arguments = [*arguments, f"http://127.0.0.1:{free_port()}"]
    done = run_example(name, *arguments)

    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert why in line
