"""Dynamo's KV router knows what the sidecar has, by the KV events of real workers.

Both workers are on one node: each can load what either has stored.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from signal import SIGKILL

import pytest

from bench.routing.decisions import LOG, Decision, decisions
from examples.counters import counter
from tests.support.server import REPO, wait_until
from tests.support.stack import Stack

from .conftest import prompt

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        not (REPO / ".venv" / "dynamo").exists(), reason="needs `scripts/install.py dynamo`"
    ),
]

BLOCK = 128
GPU_BLOCKS = 40  # of each worker; a prompt of the greatest length has 32
TEXT = prompt("Upsilon", 1500)
BLOCKS = len(TEXT) // BLOCK
HITS = "lookup_hit_tokens_total"


@dataclass(frozen=True)
class Routed:
    """One request: the worker that got it, and how many of its blocks the router knew there.

    `on_gpu`, `below` (in host memory) and `on_disk` are blocks, `holders` the workers that could
    load some from host memory; `loaded` are the tokens that the sidecar gave.
    """

    worker: int
    on_gpu: int
    below: int
    on_disk: int
    holders: int
    loaded: int


class Node:
    """A frontend with the KV router, workers with few blocks, one sidecar."""

    def __init__(self, directory: Path, workers: int = 2, *flags: str) -> None:
        self.workers = workers
        disk = {"type": "fs", "base_path": f"{directory}/l2"}
        self.stack = Stack("agg", directory, DYN_LOG=LOG).start(
            *("--client", "native", "--router-mode", "kv", "--workers", str(workers)),
            *("--worker-args", f"--num-gpu-blocks-override {GPU_BLOCKS}"),
            *("--l1-size-gb", "1", "--l2-adapter", json.dumps(disk)),
            *flags,
        )
        self.stack.wait_ready()
        status = self.stack.status()
        self.url = f"{status['url']}/v1/completions"
        (row,) = [row for row in status["programs"] if row["program"] == "sidecar"]
        self.sidecar = f"http://127.0.0.1:{row['ports']['http']}"
        self._topics = itertools.count()

    def ask(self, text: str) -> Routed:
        hits, asked = self.count(HITS), len(self._decisions())
        body = {
            "model": "small", "prompt": text, "max_tokens": 2, "temperature": 0,
            "nvext": {"extra_fields": ["timing"]},
        }  # fmt: skip
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=180) as answer:
            rate = json.load(answer)["nvext"]["timing"]["kv_hit_rate"]
        wait_until(lambda: len(self._decisions()) > asked, "the router's word is in the log")
        made = self._decisions()[asked]
        below, on_disk = made.host_blocks, made.disk_blocks
        on_gpu = round(rate * -(-len(text) // BLOCK) - 0.75 * below - 0.25 * on_disk)
        return Routed(made.worker, on_gpu, below, on_disk, made.holders, self.count(HITS) - hits)

    def fill_gpus(self) -> None:
        """With other prompts, until none of what was there before is left on any worker."""
        blocks: dict[int, int] = {}
        while len(blocks) < self.workers or min(blocks.values()) < GPU_BLOCKS:
            routed = self.ask(prompt(f"Other {next(self._topics)}", 3000))
            blocks[routed.worker] = blocks.get(routed.worker, 0) + 3000 // BLOCK

    def clear(self, tier: str) -> None:
        body = json.dumps({"tier": tier}).encode()
        request = urllib.request.Request(f"{self.sidecar}/cache/clear", body)
        request.add_header("Content-Type", "application/json")
        urllib.request.urlopen(request, timeout=60).close()

    def kill_worker(self) -> None:
        """SIGKILL; returns once a new one serves."""
        before = self.stack.output().count("worker-0 is ready")
        os.kill(self.stack.pids()["worker-0"], SIGKILL)
        wait_until(
            lambda: self.stack.output().count("worker-0 is ready") > before, "it is back", 300
        )

    def count(self, metric: str) -> int:
        """Of the sidecar."""
        return counter(self.sidecar, f"lmcache_mp_{metric}")

    def _decisions(self) -> list[Decision]:
        return decisions(self.stack.output())


@contextmanager
def running_node(workers: int, *flags: str) -> Iterator[Node]:
    directory = Path(tempfile.mkdtemp(prefix="kvd"))
    node = Node(directory, workers, *flags)
    yield node
    assert node.stack.end() == 0
    assert node.stack.left() == []
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with running_node(2) as node:
        yield node


def test_a_router_goes_on_below_the_gpu(node: Node) -> None:
    first = node.ask(TEXT)
    assert (first.on_gpu, first.below, first.loaded) == (0, 0, 0)
    again = node.ask(TEXT)
    assert (again.worker, again.on_gpu, again.below) == (first.worker, BLOCKS, 0)

    node.fill_gpus()
    found = node.ask(TEXT)
    assert (found.on_gpu, found.below, found.loaded) == (0, BLOCKS, BLOCKS * BLOCK)
    assert found.holders == 2, "the worker that has not stored it, too"


def test_a_router_goes_on_to_the_disk(node: Node) -> None:
    text = prompt("Phi", 1500)
    wait_until(lambda: node.count("num_queued_l2_stores") == 0, "what there was is written")
    written = node.count("l2_store_completed_objects_chunks_total")
    node.ask(text)
    wait_until(
        lambda: node.count("l2_store_completed_objects_chunks_total") >= written + BLOCKS,
        "L2 has the text",
    )
    for _ in range(3):  # to load takes longer than a lookup may where the machine is busy: a miss
        node.clear("l1")
        node.fill_gpus()
        found = node.ask(text)
        assert (found.on_gpu, found.below, found.on_disk) == (0, 0, BLOCKS)
        if found.loaded:
            break
    assert found.loaded == BLOCKS * BLOCK


def test_a_router_forgets_what_the_sidecar_has_lost(node: Node) -> None:
    node.ask(TEXT)
    node.clear("all")
    node.fill_gpus()
    lost = node.ask(TEXT)
    assert (lost.on_gpu, lost.below, lost.on_disk, lost.holders, lost.loaded) == (0, 0, 0, 0, 0)


def test_a_worker_that_returns_tells_what_the_sidecar_has(node: Node) -> None:
    """Also of what it has not stored itself, in its present life."""
    node.ask(TEXT)
    node.kill_worker()
    node.fill_gpus()
    found = node.ask(TEXT)
    assert (found.on_gpu, found.below, found.loaded) == (0, BLOCKS, BLOCKS * BLOCK)
    assert found.holders == 2
