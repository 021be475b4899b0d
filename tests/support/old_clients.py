"""Processes of `old_client.py`, one a release."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.releases import folder

HANDLE, ENGINE = "handle", "engine"
BLOCKS, SLOTS = 48, 16  # as in old_client.py
# What LMCACHE_MP_TRANSFER_MODE is set to.
_MODES = {HANDLE: "lmcache_driven", ENGINE: "engine_driven"}
_MODES_OF_0_4_7 = {HANDLE: "handle", ENGINE: "data"}


class Process:
    """A program of tests/support that runs with one release; `call` calls a method there.

    Without a release it is the installed one's.
    """

    def __init__(self, release: str | None, program: str) -> None:
        environment = os.environ | {
            "PYTHONPATH": str(folder(release)) if release else "",
            "LMCACHE_DISABLE_BANNER": "1",
            "LMCACHE_TRACK_USAGE": "false",
            "LMCACHE_LOG_LEVEL": "CRITICAL",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name(program))], env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of a call; AssertionError with what it raised there."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert "error" not in answer, f"{name}: {answer['error']}"
        return answer["value"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def blocks_of(tokens: list[int], request: str) -> tuple[list[int], list[int]]:
    """Random blocks to store the tokens from and to load them into, the same for one request."""
    count = len(tokens) // SLOTS
    blocks = random.Random(request).sample(range(1, BLOCKS), 2 * count)
    return blocks[:count], blocks[count:]


class OldClient(Process):
    """A worker and a scheduler of one release; its methods are those of `old_client.Client`."""

    def __init__(self, release: str | None) -> None:
        self._modes = _MODES_OF_0_4_7 if release == "0.4.7" else _MODES
        super().__init__(release, "old_client.py")

    def start(
        self, url: str, model: str, mode: str, seed: int = 1, heartbeat: float = 10.0
    ) -> None:
        self.call("start", url, model, self._modes[mode], seed, heartbeat)

    def round_trip(self, tokens: list[int], request: str, stored: bool = False) -> None:
        """Store, find, load into other blocks: byte for byte. `stored`: it is there already."""
        source, target = blocks_of(tokens, request)
        if not stored:
            assert self.call("store", tokens, source, f"{request}-s")
        wanted = self.call("digest", source)
        self.call("wipe", target)
        assert self.call("lookup", tokens, request) == self.chunks(tokens)
        assert self.call("retrieve", tokens, target, request) == []
        assert self.call("digest", target) == wanted
        self.call("end", tokens, request)

    def chunks(self, tokens: list[int]) -> int:
        return len(tokens) // int(self.call("chunk_size"))
