"""A running admin port over a service and a wire loop that only pretend."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import httpx

from sidecar.admin import AdminServer
from sidecar.cache.arena import ALIGNMENT
from sidecar.cache.l1 import L1
from sidecar.cache.policies import POLICIES
from sidecar.cache.quotas import Quotas
from sidecar.config import Config
from sidecar.handlers.protecting import Protecting, RecentLookups
from sidecar.handlers.tenants import Tenants
from sidecar.telemetry import Telemetry
from sidecar.tiers.clearing import Cleared

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
    "lmcache": "0.5.5-0.5.6",
    "moves_files": False,
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
ADAPTER = {
    "label": "disk",
    "index": 0,
    "type": "fs",
    "shared": False,
    "scanned": True,
    "objects": 3,
    "used_bytes": 300,
    "capacity_bytes": 1200,
    "clear_lasts": True,
    "left_over": 0,
    "breakers": {
        "load": {"state": "closed", "last_failure": ""},
        "store": {"state": "closed", "last_failure": ""},
    },
    "reading": 1,
    "reading_bytes": 100,
    "writing": 2,
    "queued": 4,
    "read_bytes": 5000,
    "written_bytes": 6000,
}
REFUSAL = {
    "operation": "store",
    "reason": "bad_blocks",
    "detail": "block 9 of 8",
    "count": 2,
    "seconds_ago": 1.5,
}
CHUNK_SIZE = 256
MAX_TOKENS = 4096
SNAPSHOT = {
    "chunk_size": CHUNK_SIZE,
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
    "tenants": [],
    "protected": {"count": 0, "used_bytes": 0, "limit_bytes": 0},
    "kept": {
        "seconds": 0.0,
        "failed": False,
        "undigested_objects": 0,
        "unproven_objects": 0,
        "others_bytes": 0,
    },
    "kv_events": {"enabled": False, "subscribers": 0, "native_readers": 0},
    "eviction": {"policy": "LRU", "trigger_watermark": 0.8, "ratio": 0.2},
    "read_ttl_seconds": 300,
    "write_ttl_seconds": 600,
    "active_prefetch_jobs": 0,
    "live_leases": 3,
    "queue_depth": 1,
    "refusals": {"bad_blocks": 2},
    "latest_refusals": [REFUSAL],
    "engines": [],
    "workers": [HANDLE, ENGINE_DRIVEN],
    "l2": [],
    "reap": {"timeout": 120, "grace": 3600},
}


class Loop:
    """Runs what it is given at once, or does not answer."""

    hung = False

    def call(self, fn: Callable[[], T], timeout: float) -> T:
        if self.hung:
            raise TimeoutError
        return fn()


Key = tuple[bytes, str, int, str]


class Name(NamedTuple):
    """The name of an object in L2; one that is a digest does not tell its key."""

    hash: bytes
    key: Key | None


class Listing(NamedTuple):
    """All that one adapter has."""

    adapter: str
    shared: bool
    names: list[Name]
    size_of: Callable[[Name], int]


class Objects:
    """Adapters by label, and an L1, whose objects a test can set."""

    def __init__(self) -> None:
        self.l2: dict[str, list[tuple[Name, int]]] = {}
        self.l1: set[Key] = set()
        self.held: set[Key] = set()
        self.undeletable: set[Key] = set()

    def listing(self, adapter: str | None) -> Listing:
        label = self._label(adapter)
        sizes = dict(self.l2[label])
        return Listing(label, label == "bucket", list(sizes), sizes.__getitem__)

    def key_of(self, name: Name) -> Key | None:
        return name.key

    def delete_from_l2(self, keys: Sequence[Key], adapter: str | None) -> "Future[tuple[int, int]]":
        label = self._label(adapter)
        before = self.l2[label]
        stay = [e for e in before if e[0].key not in keys or e[0].key in self.undeletable]
        self.l2[label] = stay
        failed = sum(entry[0].key in keys for entry in stay)
        future: Future[tuple[int, int]] = Future()
        future.set_result((len(before) - len(stay), failed))
        return future

    def delete_from_l1(self, keys: Sequence[Key], force: bool) -> tuple[int, int]:
        found = self.l1.intersection(keys)
        deleted = found if force else found - self.held
        self.l1 -= deleted
        return len(deleted), len(found - deleted)

    def _label(self, adapter: str | None) -> str:
        if not self.l2:
            raise LookupError("no L2 adapter is configured")
        if adapter is not None and adapter not in self.l2:
            raise KeyError(adapter)
        return next(iter(self.l2)) if adapter is None else adapter


@dataclass
class Job:
    """A prefetch; a test sets `found_keys` to end it."""

    total_keys: int
    found_keys: int | None = None


class Prefetches:
    """For the model llama; each submission is kept. A chunk's hash is its first token."""

    def __init__(self) -> None:
        self.submitted: list[tuple[str, int, list[bytes], str]] = []
        self.jobs: dict[str, Job] = {}

    def hashes(self, token_ids: Sequence[int]) -> list[bytes]:
        if len(token_ids) > MAX_TOKENS:
            raise ValueError(f"{len(token_ids)} tokens, more than {MAX_TOKENS}")
        whole = len(token_ids) // CHUNK_SIZE * CHUNK_SIZE
        return [token_ids[at].to_bytes(4) for at in range(0, whole, CHUNK_SIZE)]

    def submit(self, model_name: str, world_size: int, hashes: list[bytes], cache_salt: str) -> str:
        if model_name != "llama":
            raise LookupError(f"no worker serves {model_name!r} with world size {world_size}")
        if "@" in cache_salt:
            raise ValueError("cache_salt contains '@'")
        self.submitted.append((model_name, world_size, hashes, cache_salt))
        request_id = f"prefetch-{len(self.submitted)}"
        if hashes:
            self.jobs[request_id] = Job(len(hashes) * world_size)
        return request_id

    def take(self, request_id: str) -> Job:
        job = self.jobs[request_id]
        if job.found_keys is not None:
            del self.jobs[request_id]
        return job


class Samples:
    """Three rows of one column."""

    def since(self, taken: int) -> dict[str, Any]:
        return {"columns": ["age"], "taken": 3, "rows": [[0.0], [3.0], [6.0]][taken:]}


class Service:
    """State that a test can set."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Healthy, with one worker of each kind and no L2."""
        self.reason: str | None = None
        self.outcome: list[Cleared] = []  # of a clear of L2
        self.cleared: list[tuple[tuple[str, ...], bool]] = []
        self.outcome: list[Cleared] = []  # of a clear of L2
        self.wrong: list[str] = []
        self.workers: list[dict[str, Any]] = [HANDLE, ENGINE_DRIVEN]
        self.l2: list[dict[str, Any]] = []
        self.objects = Objects()
        self.prefetches = Prefetches()
        quotas = Quotas(1 << 30)
        self.l1 = L1(1 << 30, POLICIES["IsolatedLRU"](quotas), protect_ratio=2 * ALIGNMENT / 2**30)
        self.recent = RecentLookups()
        self.protecting = Protecting(self.l1, self.recent)
        self.tenants = Tenants(self.l1, [], (), lambda: None)
        self.samples = Samples()

    def health(self) -> str | None:
        return self.reason

    def snapshot(self) -> dict[str, Any]:
        tenants = self.tenants.rows()
        return {
            **SNAPSHOT,
            "workers": self.workers,
            "l2": self.l2,
            "tenants": tenants,
            "protected": self.protecting.totals(),
        }

    def problems(self) -> list[str]:
        return self.wrong

    def clear(self, tiers: Sequence[str], force: bool) -> "Future[list[Cleared]]":
        self.cleared.append((tuple(tiers), force))
        future: Future[list[Cleared]] = Future()
        future.set_result(self.outcome if "l2" in tiers else [])
        return future

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
