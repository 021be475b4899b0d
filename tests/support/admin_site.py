"""A running admin port over a service and a wire loop that only pretend."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import httpx

from sidecar.admin import AdminServer
from sidecar.config import Config
from sidecar.telemetry import Telemetry

T = TypeVar("T")
GROUP = {
    "layer_indices": [0, 1],
    "tokens_per_block": 16,
    "slots_per_block": 16,
    "dtype": "float16",
    "shape": [100, 2, 16, 8, 64],
    "is_mla": False,
    "engine_kv_format": "NL_X_NB_TWO_BS_NH_HS",
    "engine_group_idx": 0,
}
HANDLE = {
    "instance_id": 7,
    "kind": "handle",
    "model_name": "llama",
    "world_size": 1,
    "device": "cpu",
    "last_seen_seconds": 1.5,
    "connected": True,
    "num_layers": 2,
    "num_blocks": 100,
    "cache_size_per_token": 4096,
    "groups": [GROUP],
    "block_size": None,
    "use_mla": None,
}
ENGINE_DRIVEN = {
    **HANDLE,
    "instance_id": 2**62,
    "kind": "engine_driven",
    "groups": [],
    "block_size": 16,
    "use_mla": False,
}
SNAPSHOT = {
    "chunk_size": 256,
    "hash_algorithm": "blake3",
    "active_sessions": 2,
    "l1": {
        "total_objects": 5,
        "write_locked": 1,
        "read_locked": 2,
        "used_bytes": 256,
        "total_bytes": 1024,
        "populated_bytes": 512,
    },
    "eviction": {"policy": "LRU", "trigger_watermark": 0.8, "ratio": 0.2},
    "read_ttl_seconds": 300,
    "write_ttl_seconds": 600,
    "active_prefetch_jobs": 0,
    "live_leases": 3,
    "queue_depth": 1,
    "refusals": {"store": 2},
    "workers": [HANDLE, ENGINE_DRIVEN],
    "reap": {"timeout": 120, "grace": 3600},
}


class Loop:
    """Runs what it is given at once, or does not answer."""

    hung = False

    def call(self, fn: Callable[[], T], timeout: float) -> T:
        if self.hung:
            raise TimeoutError
        return fn()


class Service:
    """State that a test can set."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Healthy, with one worker of each kind."""
        self.reason: str | None = None
        self.cleared: list[bool] = []
        self.workers: list[dict[str, Any]] = [HANDLE, ENGINE_DRIVEN]

    def health(self) -> str | None:
        return self.reason

    def snapshot(self) -> dict[str, Any]:
        return {**SNAPSHOT, "workers": self.workers}

    def clear(self, force: bool) -> None:
        self.cleared.append(force)

    def block_checksums(
        self, instance_id: int, block_ids: Sequence[int], blocks_per_chunk: int, layerwise: bool
    ) -> "Future[dict[str, Any]]":
        if instance_id != 7:
            raise KeyError(instance_id)
        if max(block_ids) >= 100:
            raise ValueError("block id 100 is not below 100")
        digests: object = ["d0", "d1"]
        future: Future[dict[str, Any]] = Future()
        future.set_result({"chunk_checksums": {"layer_0": digests} if layerwise else digests})
        return future


class Site:
    """A running admin server with its fakes."""

    def __init__(self, **options: Any) -> None:
        self.config = Config(l1_size_gb=1, http_port=0, **options)
        self.service = Service()
        self.loop = Loop()
        self.telemetry = Telemetry(enabled=not self.config.disable_metrics)
        self.server = AdminServer(self.config, self.service, self.loop, self.telemetry)
        self.server.start()
        assert self.server.wait_started(30)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.server.port}", timeout=30)

    def reset(self) -> None:
        """Healthy again, as at the start."""
        self.loop.hung = False
        self.service.reset()

    def close(self) -> None:
        """Stop it."""
        self.http.close()
        self.server.stop()
        self.telemetry.close()
