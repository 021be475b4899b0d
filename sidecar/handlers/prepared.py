"""Which slots of the arena engine-driven workers work on, and when these are free again.

A prepared slot belongs to the connection that prepared it: only what comes over this connection
publishes or frees it. The end of the connection takes the right to publish, but frees nothing yet:
it ends with its process, and also with a proxy or a network between them. The slot is free when
no process has the arena open any more by the worker's name.
"""

import logging
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from sidecar.cache.entry import Entry
from sidecar.cache.leases import Scope
from sidecar.engines.attachments import Attachments
from sidecar.engines.registry import Instance, shown
from sidecar.handlers.shares import write_share

log = logging.getLogger(__name__)

_STILL_OPEN = (
    "worker %d has lost its connection, and its process still has the L1 open: "
    "%d bytes of the L1 stay taken until it ends"
)
_UNKNOWN = (
    "worker %d has lost its connection, and whether its process has ended cannot be known here: "
    "%d bytes of the L1 stay taken until the server restarts"
)
# Instance, request, scope, rank, range, and the last chunk's hash, which covers all tokens.
PreparedKey = tuple[int, str, Scope, int | None, int, int, bytes]


@dataclass(eq=False, slots=True)
class Prepared:
    """Slots that a worker works on, prepared over the connection `client`.

    A write is `withdrawn` at its `deadline`, or when its worker is lost: it can no longer be
    committed. A read has no deadline.
    """

    name: PreparedKey
    instance: Instance
    client: bytes
    entries: list[Entry]
    deadline: float = math.inf
    withdrawn: bool = False
    reported: bool = False

    @property
    def is_write(self) -> bool:
        return self.deadline < math.inf

    @property
    def nbytes(self) -> int:
        """Of the arena, headers included."""
        return sum(entry.slot_bytes for entry in self.entries)


class PreparedSlots:
    """All slots that are prepared for writing, and all for reading. Loop thread only."""

    def __init__(self, capacity: int, attachments: Attachments) -> None:
        """`capacity` is the arena's, in bytes."""
        self._capacity = capacity
        self._attachments = attachments
        self._writes: dict[PreparedKey, Prepared] = {}
        self._reads: dict[PreparedKey, list[Prepared]] = {}
        self._written: Counter[bytes] = Counter()
        self._read: Counter[bytes] = Counter()

    @property
    def slots(self) -> int:
        return sum(len(prepared.entries) for prepared in self._all())

    def writes(self) -> list[Prepared]:
        return list(self._writes.values())

    def instances(self) -> set[int]:
        """The workers that have prepared slots."""
        return {prepared.instance.id for prepared in self._all()}

    def clients(self) -> set[bytes]:
        """The connections that have prepared slots."""
        return {prepared.client for prepared in self._all()}

    def write_share(self, client: bytes) -> int:
        """How many bytes more this connection may prepare for writing."""
        return write_share(self._capacity, self._written.total(), self._written[client])

    def may_read(self, client: bytes, nbytes: int) -> bool:
        """Whether this connection may prepare so much for reading: half of the L1, or one hit."""
        held = self._read[client]
        return not held or held + nbytes <= self._capacity // 2

    def writing(self, name: PreparedKey) -> Prepared | None:
        return self._writes.get(name)

    def reading(self, name: PreparedKey, client: bytes) -> Prepared | None:
        """The oldest read of this name over this connection."""
        return next((read for read in self._reads.get(name, []) if read.client == client), None)

    def add_write(self, prepared: Prepared) -> None:
        self._writes[prepared.name] = prepared
        self._written[prepared.client] += prepared.nbytes

    def add_read(self, prepared: Prepared) -> None:
        self._reads.setdefault(prepared.name, []).append(prepared)
        self._read[prepared.client] += prepared.nbytes

    def remove(self, prepared: Prepared) -> None:
        """Its slots are not the worker's any more."""
        prepared.instance.transfers -= 1
        if self._writes.get(prepared.name) is prepared:
            del self._writes[prepared.name]
            _subtract(self._written, prepared)
            return
        reads = self._reads[prepared.name]
        reads.remove(prepared)
        if not reads:
            del self._reads[prepared.name]
        _subtract(self._read, prepared)

    def of(self, instance_id: int, client: bytes) -> list[Prepared]:
        """What this worker has prepared over this connection."""
        return [p for p in self._all() if (p.instance.id, p.client) == (instance_id, client)]

    def over(self, clients: set[bytes]) -> list[Prepared]:
        """What has been prepared over these connections."""
        return [prepared for prepared in self._all() if prepared.client in clients]

    def untouched(self, lost: Iterable[Prepared]) -> list[Prepared]:
        """Of what has lost its connection, that which no process can touch any more."""
        lost = list(lost)
        ids = {prepared.instance.id for prepared in lost}
        waiting = {i for i in ids if self._attachments.may_touch(i)}
        for instance_id in waiting:
            self._report([prepared for prepared in lost if prepared.instance.id == instance_id])
        return [prepared for prepared in lost if prepared.instance.id not in waiting]

    def _report(self, waiting: list[Prepared]) -> None:
        if any(prepared.reported for prepared in waiting):
            return
        for prepared in waiting:
            prepared.reported = True
        log.warning(
            _STILL_OPEN if self._attachments.reliable else _UNKNOWN,
            shown(waiting[0].instance.id),
            sum(prepared.nbytes for prepared in waiting),
        )

    def _all(self) -> list[Prepared]:
        return [*self._writes.values(), *(p for reads in self._reads.values() for p in reads)]


def _subtract(held: Counter[bytes], prepared: Prepared) -> None:
    held[prepared.client] -= prepared.nbytes
    if not held[prepared.client]:
        del held[prepared.client]
