"""A real vLLM whose own OffloadingConnector has the sidecar behind it, without lmcache."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from connectors import roles
from connectors.offloading import NativeServer
from examples.counters import counter
from examples.demo.engine import MODEL_NAME, Engine, start_engine
from tests.support.server import REPO, Server

MAX_TOKENS = 12
# vLLM's blocks on a CPU have 128 tokens.
BLOCK = 128


@dataclass(frozen=True)
class Answer:
    """A greedy completion: its tokens with their log probabilities."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]

    def __eq__(self, other: object) -> bool:
        """Equal KV gives equal logits, but for the order of additions in batches of other sizes."""
        if not isinstance(other, Answer) or self.tokens != other.tokens:
            return False
        pairs = zip(self.logprobs, other.logprobs, strict=True)
        return all(abs(a - b) < 1e-3 for a, b in pairs)


def ask(engine: Engine, text: str | None, **fields: Any) -> Answer:
    """What is said of `text`, or of another input that `fields` have."""
    [answer] = _complete(engine, prompt=text, **fields)
    return answer


def ask_together(engine: Engine, texts: list[str], **fields: Any) -> list[Answer]:
    """In one request, so that vLLM has all of them at once."""
    return _complete(engine, prompt=texts, **fields)


def _complete(engine: Engine, **fields: Any) -> list[Answer]:
    body = {
        "model": MODEL_NAME, "max_tokens": MAX_TOKENS, "temperature": 0,
        "ignore_eos": True, "return_token_ids": True, "logprobs": 0, **fields,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{engine.url}/v1/completions", json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=300) as answer:
        choices = sorted(json.load(answer)["choices"], key=lambda choice: choice["index"])
    return [
        Answer(tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]))
        for choice in choices
    ]


def loaded(engine: Engine) -> int:
    """Tokens that vLLM took from the sidecar, so far."""
    return counter(engine.url, "vllm:external_prefix_cache_hits_total")


def objects(server: Server) -> int:
    return int(server.status()["storage_manager"]["l1_manager"]["total_object_count"])


@contextmanager
def no_lmcache(folder: Path) -> Iterator[None]:
    """Processes that are started meanwhile have no lmcache, and tell if they look for it."""
    package = folder / "without" / "lmcache"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(
        "import pathlib\n"
        "(pathlib.Path(__file__).parent / 'looked_for').touch()\n"
        "raise ModuleNotFoundError('lmcache is not installed here', name='lmcache')\n"
    )
    path = os.pathsep.join(
        filter(None, [str(package.parent), str(REPO), os.environ.get("PYTHONPATH", "")])
    )
    with patch.dict(os.environ, {"PYTHONPATH": path, "PYTHONHASHSEED": "0"}):
        yield
    assert not (package / "looked_for").exists()


@contextmanager
def native_engine(
    server: Server, model: Path, log: Path, *more: str, cores: str | None = None, **door: Any
) -> Iterator[Engine]:
    transfer = roles.aggregated(NativeServer(port=server.port, **door))
    engine = start_engine(model, transfer, log, cores=cores, more=more)
    try:
        yield engine
    finally:
        engine.process.stop()


def engines(server: Server) -> Sequence[dict[str, Any]]:
    """What the sidecar tells of the engines at its native door."""
    told: Sequence[dict[str, Any]] = server.status()["engines"]
    return told


def nothing_is_held(server: Server) -> bool:
    """But for the slots that engines hold ahead."""
    l1 = server.status()["storage_manager"]["l1_manager"]
    ahead = sum(e["reserved_bytes"] for e in engines(server))
    return l1["read_locked_count"] == 0 and (ahead > 0 or l1["write_locked_count"] == 0)
