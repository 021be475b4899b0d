"""Time to first token of prompts that only the sidecar has, in a real vLLM with either client."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench import servers
from bench.common import STOP_LIMIT, BenchError
from bench.figures import Samples
from connectors import roles
from connectors.lmcache_mp import CacheServer
from connectors.offloading import NativeServer
from examples.demo.client import Completion, complete
from examples.demo.engine import start_engine
from launch.tiny_model import make_model

_L1_GB = 4
_PROMPTS = 8
_TOKENS = 3_900
# One token of text is one byte. vLLM's blocks on a CPU have 128 tokens: its own cache has room for
# one prompt, so a prompt that comes again is not there.
_GPU_BLOCKS = 40
_MORE = ("--enable-prefix-caching", "--num-gpu-blocks-override", str(_GPU_BLOCKS))
_ANSWER_TOKENS = 4


def measure(logs: Path) -> Samples:
    """Seconds of prompts that are new and of the same ones again, for each client in turn.

    Raises BenchError where an answer differs, or the sidecar was not asked.
    """
    model = make_model(logs / "model", hidden=512, layers=8)
    samples: Samples = {}
    with servers.running("ours", _L1_GB, logs) as server:
        transfers = {
            "lmcache": roles.aggregated(CacheServer(port=server.port)),
            "native": roles.aggregated(NativeServer(port=server.port)),
        }
        for client, transfer in transfers.items():
            with _engine(model, transfer, logs / f"vllm-{client}.log") as url:
                prompts = [_prompt() for _ in range(_PROMPTS)]
                complete(url, _prompt(), _ANSWER_TOKENS)  # what happens once
                cold = [complete(url, prompt, _ANSWER_TOKENS) for prompt in prompts]
                before = server.metric("lmcache_mp_lookup_hit_tokens_total")
                warm = [complete(url, prompt, _ANSWER_TOKENS) for prompt in prompts]
                hits = server.metric("lmcache_mp_lookup_hit_tokens_total") - before
            _check(client, cold, warm, hits)
            samples[f"ttft_cold_{client}"] = [each.first_token_seconds for each in cold]
            samples[f"ttft_{client}"] = [each.first_token_seconds for each in warm]
    return samples


def _check(client: str, cold: list[Completion], warm: list[Completion], hits: int) -> None:
    if [each.token_ids for each in cold] != [each.token_ids for each in warm]:
        raise BenchError(f"{client}: another answer with KV from the sidecar")
    if hits < 0.9 * _TOKENS * _PROMPTS:
        raise BenchError(f"{client}: only {hits} tokens were hits")


def _prompt() -> str:
    return secrets.token_hex(_TOKENS // 2)


@contextmanager
def _engine(model: Path, transfer: dict[str, Any], log: Path) -> Iterator[str]:
    """The address of a vLLM on all cores."""
    engine = start_engine(model, transfer, log, more=_MORE)
    try:
        yield engine.url
    finally:
        engine.process.stop(STOP_LIMIT)
