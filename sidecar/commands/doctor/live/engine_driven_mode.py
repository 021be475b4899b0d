"""A worker that copies itself, into the server's memory and out of it."""

import mmap
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sidecar.cache.segment import SHM_DIR
from sidecar.commands.doctor.live.client import Client, LiveFailed
from sidecar.commands.doctor.live.prompt import Prompt, registered

_NAME = re.compile(r"/?([A-Za-z0-9._@-]{1,200})")
_ITEMS, _ITEM_BYTES = 8, 2  # of one token


def round_trip(client: Client, prompt: Prompt) -> None:
    """Write a slot, have it published, find and read it, compare. Raises LiveFailed."""
    size = len(prompt.tokens) * _ITEMS * _ITEM_BYTES
    with registered(client, prompt, "unregister_kv_cache_engine_driven_context"):
        address = client.call("register_kv_cache_engine_driven_context", _registration(prompt))
        with _arena(address) as arena:
            content = secrets.token_bytes(size)
            prompt.store_and_find(client, lambda: _store(client, prompt, arena, content))
            at = _slot(client.call("prepare_retrieve", *_about(prompt)), size, len(arena))
            read = arena[at : at + size]
            client.call("commit_retrieve", *_about(prompt))
            if read != content:
                raise LiveFailed("other bytes came back than were stored")


def _store(client: Client, prompt: Prompt, arena: mmap.mmap, content: bytes) -> bool:
    """Whether there was room. Raises LiveFailed."""
    reply = client.call("prepare_store", *_about(prompt))
    if reply == {"context": {"slots": [], "chunk_indices": []}}:
        return False
    at = _slot(reply, len(content), len(arena))
    arena[at : at + len(content)] = content
    if client.call("commit_store", *_about(prompt), b"") is not True:
        raise LiveFailed("the server did not publish what was stored")
    return True


def _about(prompt: Prompt) -> tuple[dict[str, Any], int]:
    return prompt.key(0), prompt.instance_id


def _registration(prompt: Prompt) -> dict[str, Any]:
    return {
        "instance_id": prompt.instance_id,
        "model_name": prompt.model,
        "world_size": 1,
        "block_size": len(prompt.tokens),
        "num_layers": 1,
        "hidden_dim_size": _ITEMS,
        "dtype_str": "float16",
        "use_mla": True,
    }


def _slot(reply: Any, size: int, limit: int) -> int:
    """Where the one slot of a reply begins. Raises LiveFailed if it is not `size` long."""
    match reply:
        case {"context": {"slots": [{"offset": int(offset), "length": int(length)}]}}:
            if length == size and 0 <= offset <= limit - size:
                return offset
    raise LiveFailed("the server gave no slot for a chunk; its log says why")


@contextmanager
def _arena(address: Any) -> Iterator[mmap.mmap]:
    """The server's memory. Raises LiveFailed for an address that is none."""
    match address:
        case {"shm_name": str(shm_name), "pool_size": int(size)} if size > 0:
            name = _NAME.fullmatch(shm_name)
        case _:
            name = None
    if name is None:
        raise LiveFailed(f"the server offers no shared memory: {str(address)[:100]}")
    try:
        fd = os.open(SHM_DIR / name[1], os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise LiveFailed(f"{SHM_DIR / name[1]}: {error.strerror}") from None
    try:
        with mmap.mmap(fd, min(size, os.fstat(fd).st_size)) as memory:
            yield memory
    finally:
        os.close(fd)
