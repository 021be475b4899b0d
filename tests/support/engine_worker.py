"""An engine-driven worker that needs only pyzmq, msgspec and numpy.

As a program it prepares a store, and writes when it is told to: `python -m
tests.support.engine_worker URL INSTANCE MODEL CHUNKS`. A line when it is prepared; a line on stdin
lets it write, and one more tells that it has; it ends with its stdin.
"""

from __future__ import annotations

import mmap
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.support.raw import RawClient, make_key

CHUNK = 64
LAYERS, HIDDEN = 2, 4096  # so an object is 1 MiB
LAYOUT = {
    "world_size": 1, "block_size": 16, "num_layers": LAYERS, "hidden_dim_size": HIDDEN,
    "dtype_str": "float16", "use_mla": True, "num_physical_slots": CHUNK,
}  # fmt: skip
_PREFIX = "_engine_driven_context"


def tokens_of(number: int, chunks: int) -> list[int]:
    return [number] * (CHUNK * chunks)


class EngineWorker:
    """It has the arena mapped from its registration on."""

    def __init__(self, client: RawClient, model: str, instance: int) -> None:
        self.client, self.model, self.instance = client, model, instance
        fields = {"instance_id": instance, "model_name": model} | LAYOUT
        place = client.call("register_kv_cache" + _PREFIX, fields)
        with Path("/dev/shm", place["shm_name"].lstrip("/")).open("r+b") as file:
            self.arena = np.frombuffer(mmap.mmap(file.fileno(), place["pool_size"]), np.uint8)

    def key(self, number: int, chunks: int) -> Any:
        tokens = tokens_of(number, chunks)
        return make_key(tokens, 0, len(tokens), model=self.model, request=f"r{number}")

    def prepare(self, number: int, chunks: int) -> list[Any]:
        """The slots to write to."""
        reply = self.client.call("prepare_store", self.key(number, chunks), self.instance)
        slots: list[Any] = reply["context"]["slots"]
        return slots

    def write(self, slots: Sequence[Any], value: int) -> None:
        for slot in slots:
            self._view(slot)[:] = value

    def commit(self, number: int, chunks: int) -> bool:
        key = self.key(number, chunks)
        return bool(self.client.call("commit_store", key, self.instance, b""))

    def store(self, number: int, chunks: int, value: int) -> bool:
        self.write(self.prepare(number, chunks), value)
        return self.commit(number, chunks)

    def load(self, number: int, chunks: int) -> list[npt.NDArray[np.uint8]] | None:
        """A copy of each chunk's bytes; None for a miss."""
        key = self.key(number, chunks)
        reply = self.client.call("prepare_retrieve", key, self.instance)
        found = [self._view(slot).copy() for slot in reply["context"].get("slots", [])]
        self.client.call("commit_retrieve", key, self.instance)
        return found if reply["success"] else None

    def unregister(self) -> None:
        self.client.call("unregister_kv_cache" + _PREFIX, self.instance)

    def _view(self, slot: Any) -> npt.NDArray[np.uint8]:
        return self.arena[slot["offset"] : slot["offset"] + slot["length"]]


def main() -> None:
    url, instance, model, chunks = sys.argv[1:]
    worker = EngineWorker(RawClient(url), model, int(instance))
    slots = worker.prepare(int(instance), int(chunks))
    assert len(slots) == int(chunks)
    print("prepared", flush=True)
    sys.stdin.readline()
    worker.write(slots, 0xEE)
    print("written", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
