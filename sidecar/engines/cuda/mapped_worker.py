"""A worker's memory as a child has mapped it."""

from collections.abc import Iterator

import numpy as np

from sidecar.engines.cuda.driver import DriverError
from sidecar.engines.cuda.mappings import Mappings, explain
from sidecar.engines.cuda.plan import GroupTable, Ints, PlaneSet, Step, plan
from sidecar.engines.cuda.protocol import Map, Move

_KEPT = 4  # a worker has one for its timeline words; there is no need to trust that


class CannotMap(Exception):
    """The worker's memory cannot be used; the text says why."""


class MappedWorker:
    """The planes of one worker by address. For the CUDA thread only."""

    def __init__(self, order: Map, mappings: Mappings) -> None:
        """Map its allocations. Raises CannotMap, and DriverError if fatal."""
        self._mappings = mappings
        self._acquired: list[bytes] = []
        self._most = len(order.allocations) + _KEPT
        self.transfers = 0
        self.is_leaving = False
        try:
            bases = [self._acquire(a.handle, a.reach) for a in order.allocations]
        except (DriverError, CannotMap) as error:
            self._release()
            if isinstance(error, CannotMap) or error.is_fatal:
                raise
            raise CannotMap(explain(error)) from None
        self._groups = [[_plane_set(p.run, p.planes, bases) for p in g] for g in order.groups]

    def steps(self, order: Move) -> Iterator[Step]:
        """How an order is carried out. Its block ids have been checked by the server."""
        offsets = np.array(order.offsets, np.int64)
        tables = []
        for planes, ids, wanted in zip(self._groups, order.blocks, order.wanted, strict=True):
            blocks = np.frombuffer(ids, np.int64).reshape(len(offsets), -1)
            mask = None if wanted is None else np.frombuffer(wanted, bool).reshape(blocks.shape)
            tables.append(GroupTable(planes, blocks, mask))
        return plan(offsets, tables)

    def keep(self, handle: bytes) -> None:
        """Keep an allocation mapped that its events need again and again. Raises DriverError."""
        if handle not in self._acquired and len(self._acquired) < self._most:
            self._mappings.acquire(handle)
            self._acquired.append(handle)

    def close(self) -> None:
        """Unmap. Raises DriverError."""
        self._release()

    def _acquire(self, handle: bytes, reach: int) -> int:
        address, size = self._mappings.acquire(handle)
        self._acquired.append(handle)
        if reach > size:
            raise CannotMap(f"tensors reach to {reach} of an allocation of {size} bytes")
        return address

    def _release(self) -> None:
        while self._acquired:
            self._mappings.release(self._acquired.pop())


def _plane_set(run: int, planes: list[tuple[int, int, int]], bases: list[int]) -> PlaneSet:
    starts = np.array([bases[owner] + offset for owner, offset, _ in planes], np.int64)
    owners: Ints = np.array([owner for owner, _, _ in planes], np.int64)
    return PlaneSet(run, starts, np.array([stride for _, _, stride in planes], np.int64), owners)
