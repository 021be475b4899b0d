"""Start vLLM's CPU build with the stock LMCacheMPConnector pointed at a sidecar."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .process import Process, free_port

MODEL_NAME = "tiny"
READY_SECONDS = 300

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "LMCACHE_DISABLE_BANNER": "1",
    "LMCACHE_TRACK_USAGE": "false",
}


@dataclass(frozen=True)
class Engine:
    """A vLLM that answers at `url`."""

    process: Process
    url: str


def start_engine(
    model: Path,
    transfer: dict[str, Any],
    log: Path,
    *,
    cores: str | None = None,
    more: Sequence[str] = (),
    tick: Callable[[], None] = lambda: None,
) -> Engine:
    """Start a vLLM and wait until it serves `model` (30 to 60 s on two cores).

    `transfer` is its kv_transfer_config. `cores` binds its threads: two engines on one machine
    need a core each or both crawl. `more` ends its command line. Raises ProcessFailed.
    """
    port = free_port()
    env = dict(ENVIRONMENT)
    if cores is not None:
        env["VLLM_CPU_OMP_THREADS_BIND"] = cores
    process = Process("vLLM", [*command(model, transfer, port), *more], log, env)
    engine = Engine(process, f"http://127.0.0.1:{port}")
    try:
        process.wait_ready(f"{engine.url}/health", READY_SECONDS, tick)
    except BaseException:
        process.stop(seconds=10)
        raise
    return engine


def command(model: Path, transfer: dict[str, Any], port: int) -> list[str]:
    return [
        str(Path(sys.executable).with_name("vllm")),
        "serve",
        str(model),
        "--served-model-name",
        MODEL_NAME,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        # With bfloat16 a greedy choice can flip by how a prefill was cut into pieces; here a
        # different output means different KV.
        "--dtype",
        "float32",
        "--max-model-len",
        "4096",
        "--enforce-eager",
        # vLLM's own cache would answer before the sidecar is asked.
        "--no-enable-prefix-caching",
        "--disable-hybrid-kv-cache-manager",
        "--kv-transfer-config",
        json.dumps(transfer),
    ]
