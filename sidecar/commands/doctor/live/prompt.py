"""A made-up prompt of one chunk, and the requests about it."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import msgspec

from sidecar.cache.keys import BYTES_PER_TOKEN, chunk_hashes
from sidecar.commands.doctor.live.client import Client, LiveFailed

_MODEL = "kv-sidecar-doctor"
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

    def look_up(self, client: Client) -> None:
        """Find it, which gives it to one reader. Raises LiveFailed for a miss."""
        client.call("lookup", self.key(None), 1)
        found = client.wait_for("query_prefetch_status", self.request_id)
        if found != 1:
            raise LiveFailed("what was stored is not found")


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
