"""The operations of the protocol: payload types and negative replies, in one form for all clients.

There is no error reply in the protocol, and a client waits for ever for a reply that does
not come. So every operation, served here or not, has the negative that its client reads as
"no": a miss, a refused store, nothing. Names, payloads and replies are those of lmcache 0.5.6;
what older clients do otherwise stands in `generations.py`. Source: sections 1.6, 2.1 and 5 of
the protocol notes.
"""

from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import msgspec

from sidecar.wire import messages as m

NO_VALUE: Final = None
_encode = msgspec.msgpack.encode


class PayloadDecoder(Protocol):
    """What makes a value of one payload frame. Raises msgspec.DecodeError or BadPayload."""

    def decode(self, frame: bytes, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: how its payload frames decode and what "no" is.

    `optional` trailing payloads may be missing. `negative` is the encoded value frame, None for a
    reply without one. `served` tells whether there is a handler for it.
    """

    name: str
    decoders: tuple[PayloadDecoder, ...]
    negative: bytes | None
    optional: int = 0
    served: bool = True

    def decode(self, frames: list[bytes]) -> list[Any]:
        """The payloads. Raises BadPayload for a wrong count, type, bound or encoding."""
        if not len(self.decoders) - self.optional <= len(frames) <= len(self.decoders):
            raise m.BadPayload(f"{len(frames)} payloads")
        try:
            return [d.decode(f) for d, f in zip(self.decoders, frames, strict=False)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise m.BadPayload(str(error)) from None

    def unserved(self) -> "Operation":
        """The same for clients whose form of it is not served: their payloads are not read."""
        decoders = (_raw,) * len(self.decoders)
        return replace(self, decoders=decoders, optional=len(decoders), served=False)


def operation(name: str, *types: Any, no: Any = NO_VALUE, optional: int = 0) -> Operation:
    """An operation that is served. `no` is the value of its negative reply."""
    negative = None if no is NO_VALUE else _encode(no)
    decoders = (
        t if isinstance(t, m.BlockIdsDecoder) else msgspec.msgpack.Decoder(t) for t in types
    )
    return Operation(name, tuple(decoders), negative, optional)


_raw: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(msgspec.Raw)


def _unserved(name: str, payloads: int, no: Any = NO_VALUE) -> Operation:
    return operation(name, *[msgspec.Raw] * payloads, no=no).unserved()


_NO_TRANSFER = (b"", False)
_REGISTER = (m.InstanceId, m.TensorHandles, m.ModelName, m.WorldSize, str, m.LayoutHints)
_BLOCKS = m.BlockIdsDecoder()
_NO_MODULE = {"success": False, "payload": b"", "error": "no server modules here"}

_ALL = (
    operation("register_kv_cache", *_REGISTER, m.EngineGroups, optional=1),
    operation("unregister_kv_cache", m.InstanceId),
    operation("store", m.CacheKey, m.InstanceId, _BLOCKS, m.EventHandle, no=_NO_TRANSFER),
    operation(
        "retrieve", m.CacheKey, m.InstanceId, _BLOCKS, m.EventHandle, m.Count, no=_NO_TRANSFER
    ),
    operation("lookup", m.CacheKey, m.Count, optional=1),
    operation("query_prefetch_status", m.RequestId, no=0),
    operation("wait_prefetch_status", m.RequestId, m.WaitSeconds, no=0),
    operation("free_lookup_locks", m.CacheKey, m.Count, optional=1),
    operation("end_session", m.RequestId),
    operation(
        "register_kv_cache_engine_driven_context",
        m.EngineDrivenRegistration,
        no=m.ArenaAddress("", 0),
    ),
    operation("unregister_kv_cache_engine_driven_context", m.InstanceId),
    operation("prepare_store", m.CacheKey, m.InstanceId, no=m.store_context([], [])),
    operation("commit_store", m.CacheKey, m.InstanceId, bytes, no=False),
    operation("prepare_retrieve", m.CacheKey, m.InstanceId, no=m.retrieve_context(None)),
    operation("commit_retrieve", m.CacheKey, m.InstanceId, no=True),
    operation("clear", bool, optional=1),
    operation("get_chunk_size", no=0),
    operation("ping", m.InstanceId | None, no=False, optional=1),
    operation("report_block_allocation", m.InstanceId, str, msgspec.Raw),
    operation("noop", no="OK"),
    operation("get_experimental", no=[]),
    _unserved("register_q_cache", 7),
    _unserved("unregister_q_cache", 1),
    _unserved("store_q", 4, no=_NO_TRANSFER),
    _unserved("query_prefetch_lookup_hits", 1, no=0),
    _unserved("cb_register_rope", 8),
    _unserved("cb_unregister_rope", 1),
    _unserved("cb_retrieve_pre_computed", 5, no=_NO_TRANSFER),
    _unserved("cb_unified_lookup", 2),
    _unserved("p2p_lookup_and_lock", 2, no=0),
    _unserved("p2p_query_lookup_results", 1, no=[]),
    _unserved("p2p_unlock_objects", 1),
    _unserved("cb_protocol_handshake", 1, no=(0, False)),
    # A reply without a value frame is also how a stream ends.
    operation("subscribe_kv_events", m.InstanceId, m.ModelName, m.Cursor, m.PageSize),
    _unserved("cb_reorder_plan", 3, no=[]),
    _unserved("server_module_call", 1, no=_NO_MODULE),
    # Gone from the protocol since 0.5.5.
    _unserved("cb_register_kv_cache", 4),
    _unserved("cb_unregister_kv_cache", 1),
    _unserved("cb_store_pre_computed", 4, no=_NO_TRANSFER),
    _unserved("cb_lookup_pre_computed", 1, no=[]),
    _unserved("cb_retrieve_pre_computed_v1", 5, no=_NO_TRANSFER),
    _unserved("cb_store_final", 4, no=_NO_TRANSFER),
    _unserved("cb_lookup_pre_computed_v2", 1, no=[]),
    _unserved("cb_retrieve_pre_computed_v2", 5, no=_NO_TRANSFER),
)
OPERATIONS: Final = {each.name: each for each in _ALL}
