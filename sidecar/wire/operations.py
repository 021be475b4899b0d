"""The operation table of a client generation: ids, names, payload types, negative replies.

There is no error reply in the protocol, and a client waits for ever for a reply that does
not come. So every operation, served here or not, has the negative that its client reads as
"no": a miss, a refused store, nothing. Source: sections 1.6, 2.1 and 5.1 of the protocol
notes, lmcache 0.5.5 and 0.5.6.
"""

from dataclasses import dataclass
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

    `optional` trailing payloads may be missing (older clients send fewer). `negative` is the
    encoded value frame, None for a reply without one.
    """

    name: str
    decoders: tuple[PayloadDecoder, ...]
    negative: bytes | None
    optional: int = 0

    def decode(self, frames: list[bytes]) -> list[Any]:
        """The payloads. Raises BadPayload for a wrong count, type, bound or encoding."""
        if not len(self.decoders) - self.optional <= len(frames) <= len(self.decoders):
            raise m.BadPayload(f"{len(frames)} payloads")
        try:
            return [d.decode(f) for d, f in zip(self.decoders, frames, strict=False)]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise m.BadPayload(str(error)) from None


class OperationTable:
    """All operations of one generation, found by either spelling: integer id or name."""

    def __init__(self, rows: list[tuple[int | None, Operation]]) -> None:
        self._by_frame: dict[bytes, Operation] = {}
        for number, operation in rows:
            self._by_frame[_encode(operation.name)] = operation
            if number is not None:
                self._by_frame[_encode(number)] = operation

    def find(self, frame: bytes) -> Operation | None:
        """The operation that an op frame names, None if there is none such."""
        return self._by_frame.get(frame)

    def names(self) -> list[str]:
        return [operation.name for operation in self._by_frame.values()]


def _op(name: str, *types: Any, no: Any = NO_VALUE, optional: int = 0) -> Operation:
    negative = None if no is NO_VALUE else _encode(no)
    decoders = (
        t if isinstance(t, m.BlockIdsDecoder) else msgspec.msgpack.Decoder(t) for t in types
    )
    return Operation(name, tuple(decoders), negative, optional)


_NO_TRANSFER = (b"", False)
_REGISTER = (m.InstanceId, m.TensorHandles, m.ModelName, m.WorldSize, str, m.LayoutHints)
_BLOCKS = m.BlockIdsDecoder()
_Any = msgspec.Raw


def _unserved(name: str, payloads: int, no: Any = NO_VALUE) -> Operation:
    """An operation that we do not serve: its payloads are not looked at."""
    return _op(name, *[_Any] * payloads, no=no, optional=payloads)


LMCACHE_0_5_5: Final = OperationTable(
    [
        (1, _op("register_kv_cache", *_REGISTER, m.EngineGroups, optional=1)),
        (2, _op("unregister_kv_cache", m.InstanceId)),
        (3, _unserved("register_q_cache", 7)),
        (4, _unserved("unregister_q_cache", 1)),
        (5, _unserved("store_q", 4, no=_NO_TRANSFER)),
        (6, _op("store", m.CacheKey, m.InstanceId, _BLOCKS, m.EventHandle, no=_NO_TRANSFER)),
        (
            7,
            _op(
                "retrieve",
                m.CacheKey,
                m.InstanceId,
                _BLOCKS,
                m.EventHandle,
                m.Count,
                no=_NO_TRANSFER,
            ),
        ),
        (8, _op("lookup", m.CacheKey, m.Count, optional=1)),
        (9, _op("query_prefetch_status", m.RequestId, no=0)),
        (10, _op("wait_prefetch_status", m.RequestId, m.WaitSeconds, no=0)),
        (12, _op("free_lookup_locks", m.CacheKey, m.Count, optional=1)),
        (13, _op("end_session", m.RequestId)),
        (
            14,
            _op(
                "register_kv_cache_engine_driven_context",
                m.EngineDrivenRegistration,
                no=m.ArenaAddress("", 0),
            ),
        ),
        (15, _op("unregister_kv_cache_engine_driven_context", m.InstanceId)),
        (16, _op("prepare_store", m.CacheKey, m.InstanceId, no=m.store_context([], []))),
        (17, _op("commit_store", m.CacheKey, m.InstanceId, bytes, no=False)),
        (18, _op("prepare_retrieve", m.CacheKey, m.InstanceId, no=m.retrieve_context(None))),
        (19, _op("commit_retrieve", m.CacheKey, m.InstanceId, no=True)),
        (20, _op("clear", bool, optional=1)),
        (21, _op("get_chunk_size", no=0)),
        (22, _op("ping", m.InstanceId | None, no=False, optional=1)),
        (23, _op("report_block_allocation", m.InstanceId, str, _Any)),
        (24, _op("noop", no="OK")),
        (25, _unserved("cb_register_rope", 8)),
        (26, _unserved("cb_unregister_rope", 1)),
        (27, _unserved("cb_retrieve_pre_computed", 5, no=_NO_TRANSFER)),
        (28, _unserved("cb_unified_lookup", 2)),
        (29, _unserved("p2p_lookup_and_lock", 2, no=0)),
        (30, _unserved("p2p_query_lookup_results", 1, no=[])),
        (31, _unserved("p2p_unlock_objects", 1)),
        (32, _op("get_experimental", no=[])),
        (33, _unserved("cb_protocol_handshake", 1, no=(0, False))),
        # A reply without a value frame is also how a stream ends.
        (None, _unserved("subscribe_kv_events", 4)),
        (None, _unserved("cb_reorder_plan", 3, no=[])),
        (
            None,
            _unserved(
                "server_module_call",
                1,
                no={"success": False, "payload": b"", "error": "no server modules here"},
            ),
        ),
    ]
)
