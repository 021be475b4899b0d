"""Payload and reply types of the LMCache MP protocol (lmcache 0.4.5 to 0.5.6).

Structs travel as msgpack maps keyed by field name; unknown keys are ignored, as the stock
server does. Bounds stand in the types, so a hostile number is refused while it is decoded. A field
that tells the releases apart is UNSET where a client does not send it.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import UNSET, Meta, UnsetType

MAX_RANKS = 1024

Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
InstanceId = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Rank = Annotated[int, Meta(ge=0, lt=MAX_RANKS)]
WorldSize = Annotated[int, Meta(ge=1, le=MAX_RANKS)]
Cursor = Annotated[int, Meta(ge=0, le=2**63 - 1)]
PageSize = Annotated[int, Meta(ge=1, le=1024)]
ModelName = Annotated[str, Meta(min_length=1, max_length=512)]
RequestId = Annotated[str, Meta(max_length=512)]
EventHandle = Annotated[bytes, Meta(max_length=256)]
TensorHandles = Annotated[list[msgspec.msgpack.Ext], Meta(max_length=4096)]
# A wait is answered when it is over, or at this time at the latest; no NaN passes a bound.
WaitSeconds = Annotated[float, Meta(ge=0, le=2**31 - 1)]


class BadPayload(ValueError):
    """A payload that decodes but means nothing we may act on; the text is the reason."""


class KvEvent(msgspec.Struct):
    """A change of what the L1 holds; `token_ids` are of one chunk, and of what is stored only."""

    seq: int
    kind: str  # "stored" or "removed"
    medium: str
    model_name: str
    block_hashes: Sequence[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]


class KvEventBatch(msgspec.Struct):
    """Events in their order. With another `incarnation`, or if events were `lost`, nothing that
    was told before counts any more. A subscription may go on at `next_cursor`."""

    enabled: bool
    incarnation: int
    next_cursor: int
    lost: bool
    events: list[KvEvent]


class CacheKey(msgspec.Struct):
    """`IPCCacheServerKey`: which chunks of which sequence, model, rank and tenant are meant.

    `token_ids` is the whole known sequence, still encoded; `[start, end)` is the range in
    tokens. `worker_id` is None for lookup and free, which mean all ranks.
    """

    model_name: ModelName
    world_size: WorldSize
    worker_id: Rank | None
    token_ids: msgspec.Raw
    start: Count
    end: Count
    request_id: RequestId
    cache_salt: Annotated[str, Meta(max_length=128)] = ""
    num_kv_readers: Annotated[int, Meta(ge=0, le=MAX_RANKS)] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if "@" in self.model_name:
            raise BadPayload("model_name contains '@'")
        if not _SALT_FORBIDDEN.isdisjoint(self.cache_salt):
            raise BadPayload("cache_salt contains one of '@', '/', '\\', NUL")
        if self.worker_id is not None and self.worker_id >= self.world_size:
            raise BadPayload("worker_id is outside world_size")
        if self.start > self.end:
            raise BadPayload("start is behind end")


NO_TOKENS: Final = msgspec.Raw(b"\x90")
_SALT_FORBIDDEN = frozenset("@/\\\0")


class LayoutHints(msgspec.Struct):
    """What the engine says of its KV layout; vLLM sends `kv_layout` only."""

    kv_layout: Annotated[str, Meta(max_length=32)] | None = None


class EngineGroupInfo(msgspec.Struct):
    """One KV group: its layers (indices into the tensor list) and its block geometry.

    `tokens_per_block` 0 means not reported; `sw_size_tokens` -1 means full attention;
    `recurrent_state` is not said before lmcache 0.5.5.
    """

    engine_group_id: Count
    layer_indices: Annotated[list[Count], Meta(max_length=4096)]
    tokens_per_block: Count = 0
    sw_size_tokens: Annotated[int, Meta(ge=-1, le=2**31 - 1)] = -1
    extra_object_group_tag: int = 0
    recurrent_state: bool | msgspec.UnsetType = msgspec.UNSET


EngineGroups = Annotated[list[EngineGroupInfo], Meta(max_length=64)]


class EngineDrivenRegistration(msgspec.Struct):
    """Geometry of one engine-driven worker's objects.

    The object shape is `[layers, slots, hidden]` if `use_mla` (which only says "one plane")
    else `[2, layers, slots, hidden]`; `num_physical_slots` None means one slot a token.
    """

    instance_id: InstanceId
    model_name: ModelName
    world_size: WorldSize
    block_size: Count
    num_layers: Annotated[int, Meta(ge=1, le=4096)]
    hidden_dim_size: Annotated[int, Meta(ge=1, le=2**24)]
    dtype_str: Annotated[str, Meta(max_length=32)]
    use_mla: bool
    num_physical_slots: Annotated[int, Meta(ge=1, le=2**20)] | None = None


class ArenaAddress(msgspec.Struct):
    """Reply to an engine-driven registration: the segment to map, its size in bytes."""

    shm_name: str
    pool_size: int


class Slot(msgspec.Struct):
    """Where one object lies in the arena, and how to view it."""

    offset: int
    length: int
    shape: list[int]
    dtype: str


def store_context(slots: list[Slot], chunk_indices: list[int]) -> dict[str, Any]:
    """Reply of prepare_store; both lists empty = nothing to write, no commit follows."""
    return {"context": {"slots": slots, "chunk_indices": chunk_indices}}


def retrieve_context(slots: list[Slot] | None) -> dict[str, Any]:
    """Reply of prepare_retrieve; None = miss. `data` is for pickles, which we never send."""
    context = {} if slots is None else {"slots": slots}
    return {"success": slots is not None, "data": b"", "context": context}


_BlockIds = Annotated[list[list[Count] | Count], Meta(max_length=2**20)]


class BlockIdsDecoder:
    """Block ids: one list a KV group; clients up to 0.4.6 send one flat list.

    All lists together have at most `MAX_BLOCK_IDS`, and no more is decoded to find that out.
    """

    MAX_BLOCK_IDS = 2**20
    _MAX_BYTES = 5 * MAX_BLOCK_IDS + 1024  # five bytes an id; the headers of the lists

    def __init__(self) -> None:
        self._decoder = msgspec.msgpack.Decoder(_BlockIds)

    def decode(self, frame: bytes) -> list[list[int]]:
        """One list a group. Raises BadPayload, or msgspec.DecodeError."""
        if len(frame) > self._MAX_BYTES:
            raise BadPayload(f"{len(frame)} bytes of block ids")
        groups = _by_group(self._decoder.decode(frame))
        count = sum(map(len, groups))
        if count > self.MAX_BLOCK_IDS:
            raise BadPayload(f"{count} block ids, the limit is {self.MAX_BLOCK_IDS}")
        return groups


def _by_group(block_ids: list[list[int] | int]) -> list[list[int]]:
    """One list of block ids a group, from either spelling.

    Raises BadPayload for a mix of the two.
    """
    groups = [ids for ids in block_ids if isinstance(ids, list)]
    if len(groups) == len(block_ids):
        return groups
    if groups:
        raise BadPayload("block_ids mixes ids and lists")
    return [[i for i in block_ids if isinstance(i, int)]]
