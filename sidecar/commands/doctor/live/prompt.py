"""A made-up prompt of one chunk, and the requests about it."""

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from sidecar.cache.keys import BYTES_PER_TOKEN, chunk_hashes
from sidecar.commands.doctor.live.client import Client, LiveFailed

_MODEL = "kv-sidecar-doctor"
_ROOM_SECONDS = 3.0
_LARGEST_CHUNK = 1 << 20
_RANK_0_OF_1 = 1 << 24 | 1 << 8  # world, worker, world, worker: a byte each


@dataclass(frozen=True)
class Prompt:
    """One chunk of random tokens for a model that nobody has, so nobody can hit it.

    `model` is always the same: it becomes a label in the server's metrics.
    """

    tokens: tuple[int, ...]
    model: str
    request_id: str
    instance_id: int

    def key(self, worker: int | None) -> dict[str, Any]:
        """The key of all of it; `worker` None stands for every rank."""
        return {
            "model_name": self.model,
            "world_size": 1,
            "worker_id": worker,
            "token_ids": self.tokens,
            "start": 0,
            "end": len(self.tokens),
            "request_id": self.request_id,
            "num_kv_readers": 1,
        }

    def object_key(self) -> dict[str, Any]:
        """Its one object, as `DELETE /cache/objects` names it."""
        encoded = b"".join(token.to_bytes(BYTES_PER_TOKEN, "big") for token in self.tokens)
        hashes = chunk_hashes([], encoded, len(self.tokens), 1)
        return {
            "chunk_hash_hex": hashes[0].hex(),
            "model_name": self.model,
            "kv_rank": _RANK_0_OF_1,
        }

    def store_and_find(self, client: Client, store: Callable[[], bool]) -> None:
        """`store` it and look it up, which gives it to one reader.

        `store` says whether there was room: what is in use is not evicted, and the L1 of a server
        that has just started becomes usable piece by piece. Raises LiveFailed if it is not found
        in time.
        """
        deadline = time.monotonic() + _ROOM_SECONDS
        while not (store() and self._is_found(client)):
            if time.monotonic() > deadline:
                raise LiveFailed("what was stored is not found, or there is no room for it")
            time.sleep(0.05)

    def _is_found(self, client: Client) -> bool:
        client.call("lookup", self.key(None), 1)
        return bool(client.wait_for("query_prefetch_status", self.request_id) == 1)


@contextmanager
def registered(client: Client, prompt: Prompt, unregister: str) -> Iterator[None]:
    """Leave nothing of the prompt's session behind, nor, by `unregister`, of its worker."""
    try:
        yield
    except LiveFailed:
        # Perhaps found and never fetched.
        with suppress(LiveFailed):
            client.call("free_lookup_locks", prompt.key(None), 1)
        raise
    finally:
        with suppress(LiveFailed):
            client.call("end_session", prompt.request_id)
            client.call(unregister, prompt.instance_id)


def new_prompt(client: Client) -> Prompt:
    """Of the server's chunk size. Raises LiveFailed."""
    size = client.call("get_chunk_size")
    if not isinstance(size, int) or not 0 < size <= _LARGEST_CHUNK:
        raise LiveFailed(f"the server's chunk size is {size!r}")
    tokens = tuple(secrets.randbelow(1 << 17) for _ in range(size))
    request_id = f"{_MODEL}-{secrets.token_hex(8)}"
    return Prompt(tokens, _MODEL, request_id, secrets.randbits(62))


def extension(body: dict[str, Any]) -> msgspec.msgpack.Ext:
    """A description of a tensor, as it travels."""
    return msgspec.msgpack.Ext(1, msgspec.msgpack.encode(body))
