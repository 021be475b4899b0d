"""A worker whose memory the server maps: it copies out of one block and back into another."""

import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.cache.segment import SHM_DIR
from sidecar.commands.doctor.live.client import Client, LiveFailed
from sidecar.commands.doctor.live.prompt import Prompt, extension, registered

# One layer of one head: [blocks, head, tokens, K and V].
_TOKEN_ITEMS, _ITEM_BYTES = 8, 2
_BLOCKS = 4
_EVENT = b"stub_ipc_handle"


def round_trip(client: Client, prompt: Prompt, null_block: int) -> None:
    """Store a block, retrieve it into another, compare. Raises LiveFailed."""
    source, target = [block for block in range(_BLOCKS) if block != null_block][:2]
    size = len(prompt.tokens) * _TOKEN_ITEMS * _ITEM_BYTES
    with (
        _segment(_BLOCKS * size) as (name, memory),
        registered(client, prompt, "unregister_kv_cache"),
    ):
        _register(client, prompt, name)
        content = secrets.token_bytes(size)
        memory[source * size : (source + 1) * size] = content
        prompt.store_and_find(client, lambda: _transfer(client, "store", prompt, source))
        _transfer(client, "retrieve", prompt, target, 0)
        if memory[target * size : (target + 1) * size] != content:
            raise LiveFailed("other bytes came back than were stored")


def _register(client: Client, prompt: Prompt, name: str) -> None:
    tokens = len(prompt.tokens)
    shape = [_BLOCKS, 1, tokens, _TOKEN_ITEMS]
    block = tokens * _TOKEN_ITEMS
    tensor = {
        "type": "cpu_shm",
        "version": 1,
        "metadata": {
            "dtype": "float16",
            "shape": shape,
            "stride": [block, block, _TOKEN_ITEMS, 1],
            "storage_offset": 0,
            "device_uuid": "cpu",
        },
        "shm_name": f"/{name}",
        "nbytes": _BLOCKS * block * _ITEM_BYTES,
    }
    hints = {"kv_layout": "HND"}
    client.call(
        "register_kv_cache",
        prompt.instance_id, [extension(tensor)], prompt.model, 1, "vllm", hints, [],
    )  # fmt: skip


def _transfer(client: Client, operation: str, prompt: Prompt, block: int, *more: int) -> bool:
    """True, which says nothing of room: what has none is skipped. Raises LiveFailed for a no."""
    reply = client.call(operation, prompt.key(0), prompt.instance_id, [[block]], _EVENT, *more)
    if not (isinstance(reply, list) and reply[-1:] == [True]):
        raise LiveFailed(f"the server refused to {operation}; its log says why")
    return True


@contextmanager
def _segment(size: int) -> Iterator[tuple[str, mmap.mmap]]:
    """Memory under a name of the kind that workers give theirs, in whole pages."""
    name = f"lmcache_kv_doctor_{secrets.token_hex(8)}"
    fd = os.open(SHM_DIR / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        with mmap.mmap(fd, size) as memory:
            yield name, memory
    finally:
        os.close(fd)
        (SHM_DIR / name).unlink()
