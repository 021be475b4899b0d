"""Where the cases of L2 run: a server with an adapter over a directory that is removed again."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import disk, servers
from bench.cases import LARGE_TOKENS
from bench.client import CHUNK_TOKENS, LARGE
from bench.common import BenchError
from bench.servers import Server

LIMIT = 180.0
OBJECT_GB = LARGE.nbytes(CHUNK_TOKENS) / 1e9
OBJECTS = LARGE_TOKENS // CHUNK_TOKENS  # of a large request
_LOOK_PAUSE = 5e-3


@dataclass(frozen=True)
class Plan:
    """How much is measured, and where; the same for both servers."""

    directory: Path
    l1_gb: int
    groups: int
    pairs: int
    effect_seconds: float


def adapter(name: str, kind: str, base: Path) -> dict[str, Any]:
    if kind != "nixl":
        direct = {"use_odirect": True} if kind == "direct" else {}
        return {"type": "fs", "base_path": str(base), **direct}
    params = {"file_path": str(base), "use_direct_io": "true"}
    if name == "ours":
        return {"type": "nixl_store", "backend": "POSIX", "backend_params": params}
    # The peer has a fixed number of open files, each with room for one of our objects.
    params["file_size"] = str(LARGE.nbytes(CHUNK_TOKENS))
    return {"type": "nixl_store", "backend": "POSIX", "backend_params": params, "pool_size": 256}


@contextlib.contextmanager
def running(name: str, kind: str | None, base: Path, l1_gb: int, logs: Path) -> Iterator[Server]:
    """A server with an L2 of this kind in `base`, or without one."""
    flags = ["--l2-adapter", json.dumps(adapter(name, kind, base))] if kind else []
    with servers.running(name, l1_gb, logs, flags) as server:
        server.wait_populated()
        yield server


def counter(server: Server, kind: str, base: Path) -> Callable[[], int]:
    """How many objects are complete in L2: files, or where those are pools what the server says."""
    if kind == "nixl" and server.name == "peer":
        return partial(server.metric, "lmcache_mp_l2_store_completed_objects_chunks_total")
    return lambda: sum(1 for _ in disk.records(base))


def wait_for(count: Callable[[], int], wanted: int) -> int:
    """Looks until there are `wanted` objects; how many there are then."""
    deadline = time.monotonic() + LIMIT
    while (there := count()) < wanted:
        if time.monotonic() > deadline:
            raise BenchError(f"{there} of {wanted} objects in L2 after {LIMIT:.0f} s")
        time.sleep(_LOOK_PAUSE)
    return there


@contextlib.contextmanager
def directory(plan: Plan) -> Iterator[Path]:
    disk.check_room(plan.directory)
    with tempfile.TemporaryDirectory(prefix="kv-bench-l2-", dir=plan.directory) as base:
        yield Path(base)
