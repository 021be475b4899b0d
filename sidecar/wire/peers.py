"""Which generation of lmcache's client a connection speaks.

Nothing on the wire says it, and one id means several operations. A stock client's first frame
decides most: it asks for the chunk size, without payload and with uid 0, and the id of that is
another one in nearly each generation. After a reconnect, or a restart of this server, the first
frame may be any. Each generation reads a frame for itself: whose payload types, keys or counts do
not fit is out, and so is what no stock client sends at this point. Those that are left serve the
frame if they agree on its meaning. If they do not, it is refused: nothing is ever guessed.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from sidecar.wire.generations import GENERATIONS, NEWEST, Generation, advice
from sidecar.wire.messages import BadPayload, CacheKey, EngineGroupInfo
from sidecar.wire.operations import Operation

_WORKERS: Final = 4_096
_FIRST_UID = msgspec.msgpack.encode(0)
_OF_ALL_RANKS = ("lookup", "free_lookup_locks")
Candidates = tuple[Generation, ...]


class Reading:
    """A frame as it is understood: the operation and its payloads, and by whose table.

    `generation` is the oldest of those that the connection may speak, whose habits are the ones to
    be careful with.
    """

    __slots__ = ("generation", "operation", "payloads")

    def __init__(self, generation: Generation, operation: Operation, payloads: list[Any]) -> None:
        self.generation = generation
        self.operation = operation
        self.payloads = payloads


class Unreadable(BadPayload):
    """A frame that means nothing, or one of several things.

    `reading`: whose negative is the answer, without payloads; None if no operation can be meant.
    `reason` is what the refusal is counted under.
    """

    def __init__(self, reason: str, detail: str, reading: Reading | None = None) -> None:
        super().__init__(detail)
        self.reason = reason
        self.reading = reading


class Peers:
    """What is known of the connections. Loop thread only; all memories are bounded."""

    def __init__(self) -> None:
        self._speaking: dict[bytes, Candidates] = {}  # of each connection, once something is known
        self._by_instance: OrderedDict[int, Candidates] = OrderedDict()

    def connected(self, client: bytes, only: Generation | None) -> None:
        """A new connection; where it was made, all speak the generation `only`, if there is one."""
        if only is not None:
            self._speaking[client] = (only,)

    def gone(self, client: bytes) -> None:
        """The connection has ended."""
        self._speaking.pop(client, None)

    def read(self, client: bytes, uid: bytes, op: bytes, frames: list[bytes]) -> Reading:
        """What the payload `frames` of the connection `client` mean. Raises Unreadable."""
        candidates = self._speaking.get(client, GENERATIONS)
        if len(candidates) > 1:
            return self._narrow(client, candidates, uid, op, frames)
        (generation,) = candidates
        operation = generation.table.find(op)
        if operation is None:
            raise Unreadable("unknown_operation", repr(op[:32]))
        return _decode(generation, operation, frames)

    def unread(self, client: bytes, op: bytes) -> Reading | None:
        """Which operation a frame names whose payloads are not looked at: the likelier one."""
        return _named(self._speaking.get(client, GENERATIONS), op)

    def registered(self, client: bytes, instance_id: int) -> None:
        """The registration of a worker of this connection counts: remember what it speaks."""
        self._by_instance[instance_id] = self._speaking.get(client, GENERATIONS)
        self._by_instance.move_to_end(instance_id)
        if len(self._by_instance) > _WORKERS:
            self._by_instance.popitem(last=False)

    def _narrow(
        self, client: bytes, candidates: Candidates, uid: bytes, op: bytes, frames: list[bytes]
    ) -> Reading:
        readings = [r for g in candidates if (r := _try(g, op, frames)) is not None]
        readings = [r for r in readings if _is_usual(r, uid)] or readings
        if not readings:
            raise _unreadable(candidates, op, frames)
        if _disagree(readings):
            readings = [r for r in readings if self._is_remembered(r)] or readings
        self._speaking[client] = tuple(reading.generation for reading in readings)
        if _disagree(readings):
            meanings = " or ".join(sorted({reading.operation.name for reading in readings}))
            raise Unreadable(
                "ambiguous_generation",
                f"{meanings}: --client-generation fixes the release of lmcache",
                _likelier(readings),
            )
        return Reading(readings[0].generation, readings[-1].operation, readings[-1].payloads)

    def _is_remembered(self, reading: Reading) -> bool:
        """Whether the worker that the frame names is known to speak like this."""
        worker = _worker_of(reading)
        return worker is not None and reading.generation in self._by_instance.get(worker, ())


def _try(generation: Generation, op: bytes, frames: list[bytes]) -> Reading | None:
    """The frame as one generation means it, None if none of its clients sends such a one."""
    operation = generation.table.find(op)
    if operation is None or not operation.served:
        return None
    try:
        payloads = operation.decode(frames)
    except BadPayload:
        return None
    fits = all(_fits(generation, operation, payload) for payload in payloads)
    return Reading(generation, operation, payloads) if fits else None


def _fits(generation: Generation, operation: Operation, payload: Any) -> bool:
    """Whether clients of this generation make such a payload."""
    if operation.name == "register_kv_cache" and isinstance(payload, list):
        groups = [each for each in payload if isinstance(each, EngineGroupInfo)]
        says = (group.recurrent_state is not msgspec.UNSET for group in groups)
        return all(each == generation.counts_readers for each in says)
    if not isinstance(payload, CacheKey):
        return True
    counts = payload.num_kv_readers is not msgspec.UNSET
    of_all_ranks = operation.name in _OF_ALL_RANKS
    return counts == generation.counts_readers and (payload.worker_id is None) == of_all_ranks


def _is_usual(reading: Reading, uid: bytes) -> bool:
    """Whether a stock adapter sends this, knowing nothing more of the connection than the uid.

    It asks for the chunk size before all else, once; and none sends a clear before 0.5.6.
    """
    name = reading.operation.name
    if name == "get_chunk_size" or uid == _FIRST_UID:
        return name == "get_chunk_size" and uid == _FIRST_UID
    return name != "clear" or reading.generation is NEWEST


def _disagree(readings: Sequence[Reading]) -> bool:
    return len({reading.operation.name for reading in readings}) > 1


def _worker_of(reading: Reading) -> int | None:
    """The instance id in a frame, if the operation has one."""
    first, second = (*reading.payloads, None, None)[:2]
    if isinstance(first, CacheKey):
        return None if reading.operation.name in _OF_ALL_RANKS else second
    return first if isinstance(first, int) else None


def _likelier(readings: Sequence[Reading]) -> Reading:
    """Whose "no" is the answer: that of the newest, but for one that would do harm."""
    harmful = [r for r in readings if r.generation.uses_what_failed(r.operation)]
    return (harmful or readings)[-1]


def _named(candidates: Candidates, op: bytes) -> Reading | None:
    found = [Reading(g, o, []) for g in candidates if (o := g.table.find(op)) is not None]
    return _likelier(found) if found else None


def _unreadable(candidates: Candidates, op: bytes, frames: list[bytes]) -> Unreadable:
    """Why no generation can read this."""
    likelier = _named(candidates, op)
    if likelier is None:
        return Unreadable("unknown_operation", repr(op[:32]))
    try:
        _decode(likelier.generation, likelier.operation, frames)
    except Unreadable as error:
        return error
    return Unreadable("bad_payload", "no release of lmcache sends this", likelier)


def _decode(generation: Generation, operation: Operation, frames: list[bytes]) -> Reading:
    reading = Reading(generation, operation, [])
    if not operation.served:
        raise Unreadable("not_served", advice(generation, operation, len(frames)), reading)
    try:
        reading.payloads = operation.decode(frames)
    except BadPayload as error:
        detail = advice(generation, operation, len(frames)) or str(error)
        raise Unreadable("bad_payload", detail, reading) from None
    return reading
