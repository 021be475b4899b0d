"""The generations of lmcache's client: which ids, payloads and habits each release has.

An id of an operation is its place in an enumeration, counted from 1, and the enumeration was
changed in its middle from release to release. So each table stands here as what was changed of its
neighbour, and a test compares it with the released packages. Handlers know the one form of
`operations.py`, and of a client's generation only its habits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from sidecar.wire import messages as m
from sidecar.wire.native import NATIVE
from sidecar.wire.operations import OPERATIONS, Operation, operation

Names = tuple[str, ...]


def _after(names: Names, place: str, *new: str) -> Names:
    """`names` with `new` ones behind `place`."""
    at = names.index(place) + 1
    return (*names[:at], *new, *names[at:])


def _without(names: Names, *gone: str) -> Names:
    return tuple(name for name in names if name not in gone)


_OLD_BLEND: Names = (
    "cb_register_kv_cache",
    "cb_unregister_kv_cache",
    "cb_store_pre_computed",
    "cb_lookup_pre_computed",
    "cb_retrieve_pre_computed_v1",
    "cb_store_final",
    "cb_lookup_pre_computed_v2",
    "cb_retrieve_pre_computed_v2",
)
_0_4_5: Names = (
    "register_kv_cache",
    "unregister_kv_cache",
    "store",
    "retrieve",
    "lookup",
    "query_prefetch_status",
    "query_prefetch_lookup_hits",
    "free_lookup_locks",
    "end_session",
    "clear",
    "get_chunk_size",
    "ping",
    "report_block_allocation",
    "noop",
    *_OLD_BLEND,
)
_0_4_6 = _after(
    _0_4_5,
    "end_session",
    "register_kv_cache_engine_driven_context",
    "prepare_store",
    "commit_store",
    "prepare_retrieve",
    "commit_retrieve",
)
_0_4_7 = (
    *_after(
        _0_4_6,
        "register_kv_cache_engine_driven_context",
        "unregister_kv_cache_engine_driven_context",
    ),
    "cb_register_rope",
    "cb_unregister_rope",
    "cb_retrieve_pre_computed",
    "cb_unified_lookup",
)
_0_5_0 = (
    *_after(_0_4_7, "query_prefetch_status", "wait_prefetch_status"),
    "p2p_lookup_and_lock",
    "p2p_query_lookup_results",
    "p2p_unlock_objects",
)
_0_5_3 = (
    *_after(_0_5_0, "unregister_kv_cache", "register_q_cache", "unregister_q_cache", "store_q"),
    "get_experimental",
)
_0_5_5 = (*_without(_0_5_3, *_OLD_BLEND), "cb_protocol_handshake")
_RETRIEVES = ("retrieve", "prepare_retrieve")
_ONLY_NAMED = ("subscribe_kv_events", "cb_reorder_plan", "server_module_call")


class OperationTable:
    """The operations of one generation, found by the frame that names one."""

    def __init__(self, ids: Names, variants: Sequence[Operation], by_name: bool) -> None:
        """`variants` take the place of the operations that other generations have.

        `by_name`: an operation may be named by a string as well.
        """
        operations = OPERATIONS | {each.name: each for each in variants}
        ours = {each.name: each for each in NATIVE} if by_name else {}
        self._by_frame = {
            msgspec.msgpack.encode(number): operations[name] for number, name in enumerate(ids, 1)
        }
        if by_name:
            named = {name: operations[name] for name in (*ids, *_ONLY_NAMED)} | ours
            self._by_frame |= {msgspec.msgpack.encode(name): op for name, op in named.items()}

    def find(self, frame: bytes) -> Operation | None:
        """The operation that an op frame names, None if there is none such."""
        return self._by_frame.get(frame)

    def operations(self) -> Mapping[bytes, Operation]:
        """All of them, by the frames that name them."""
        return self._by_frame


@dataclass(frozen=True, eq=False, slots=True)
class Generation:
    """Releases that speak alike. `first` and `last` are the releases' numbers.

    `names_worker_in_ping`: a worker's ping tells its instance id; older ones tell nothing.
    `counts_readers`: a key says how many workers will read (`num_kv_readers`), and a group whether
    it holds recurrent state.
    `heeds_failed_retrieve`: what a failed retrieve should have filled is computed again. Older
    clients log the failure and use the blocks, whatever is in them.
    `takes_empty_event`: an empty event handle means that there is nothing to wait for. Older
    clients import the handle in any case, and end their engine if it is none.
    Sources: `get_finished` and `submit_retrieve_request` of `vllm_multi_process_adapter.py`,
    `futures.py`, `protocols/`.
    """

    first: str
    last: str
    table: OperationTable = field(repr=False)
    names_worker_in_ping: bool = True
    counts_readers: bool = False
    heeds_failed_retrieve: bool = False
    takes_empty_event: bool = False

    @property
    def releases(self) -> str:
        """For people: `0.5.0-0.5.2`, or one number."""
        return self.first if self.first == self.last else f"{self.first}-{self.last}"

    def uses_what_failed(self, operation: Operation) -> bool:
        """Whether a "no" to this operation makes the client use blocks that nothing filled."""
        return not self.heeds_failed_retrieve and operation.name in _RETRIEVES


_REGISTER = (m.InstanceId, m.TensorHandles, m.ModelName, m.WorldSize, str, m.LayoutHints)
_WITHOUT_GROUPS = operation("register_kv_cache", *_REGISTER)
_WITH_GROUPS = operation("register_kv_cache", *_REGISTER, m.EngineGroups)
_WITHOUT_ID = operation("ping", no=False)
_WITH_ID = operation("ping", m.InstanceId | None, no=False)
_CLEAR = operation("clear")
# In 0.4.6 the answer does not name the arena, so its workers send their chunks as pickles.
_BY_PICKLE = [
    operation("register_kv_cache_engine_driven_context", m.EngineDrivenRegistration).unserved(),
    OPERATIONS["prepare_store"].unserved(),
    OPERATIONS["commit_store"].unserved(),
    OPERATIONS["prepare_retrieve"].unserved(),
    OPERATIONS["commit_retrieve"].unserved(),
]


def _old(first: str, last: str, ids: Names, *variants: Operation, **habits: Any) -> Generation:
    return Generation(
        first, last, OperationTable(ids, (_CLEAR, *variants), by_name=False), **habits
    )


_SILENT = {"names_worker_in_ping": False}
GENERATIONS: Final = (
    _old("0.4.5", "0.4.5", _0_4_5, _WITHOUT_GROUPS, _WITHOUT_ID, **_SILENT),
    _old("0.4.6", "0.4.6", _0_4_6, _WITHOUT_GROUPS, _WITHOUT_ID, *_BY_PICKLE, **_SILENT),
    _old("0.4.7", "0.4.7", _0_4_7, _WITH_GROUPS, _WITHOUT_ID, **_SILENT),
    _old("0.5.0", "0.5.2", _0_5_0, _WITH_GROUPS, _WITH_ID),
    _old("0.5.3", "0.5.4", _0_5_3, _WITH_GROUPS, _WITH_ID),
    Generation(
        "0.5.5",
        "0.5.6",
        OperationTable(_0_5_5, (), by_name=True),
        counts_readers=True,
        heeds_failed_retrieve=True,
        takes_empty_event=True,
    ),
)
OLDEST, NEWEST = GENERATIONS[0], GENERATIONS[-1]


def generation_of(release: str) -> Generation:
    """The generation to which a release (`0.5.2`) belongs. Raises KeyError for an unknown one."""
    for generation in GENERATIONS:
        if generation.first <= release <= generation.last:
            return generation
    raise KeyError(release)


def advice(generation: Generation, operation: Operation, payloads: int) -> str:
    """Which release to take instead of one that sends this and is not served; "" for no such one.

    0.4.4 has the ids of 0.4.5, and one payload less in a registration than any release after it.
    """
    if operation.name == "register_kv_cache" and payloads == len(_REGISTER) - 1:
        return "lmcache 0.4.4 is not served: 0.4.5 or newer is"
    if not operation.served and OPERATIONS[operation.name].served:
        return f"lmcache {generation.releases} sends pickles without a GPU: use 0.4.7 or newer"
    return ""
