"""A worker's memory as a child has mapped it."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sidecar.engines.cuda.driver import DriverError
from sidecar.engines.cuda.mappings import HandleInUse, Mappings, explain
from sidecar.engines.cuda.plan import GroupTable, Ints, PlaneSet, Runs, Step, plan, runs_of
from sidecar.engines.cuda.protocol import FileObject, Map, Move, MoveFiles

_KEPT = 4  # a worker has one for its timeline words; there is no need to trust that


class ObjectRuns(NamedTuple):
    """The `nth` object of an order; `runs.offset` is from its beginning."""

    nth: int
    file: FileObject
    runs: Runs


class CannotMap(Exception):
    """The worker's memory cannot be used; the text says why."""


class MappedWorker:
    """The planes of one worker by address. For the CUDA thread only."""

    def __init__(self, order: Map, mappings: Mappings) -> None:
        """Map its allocations. Raises CannotMap, and DriverError if fatal."""
        self._mappings, self.instance = mappings, order.instance
        self._acquired: list[bytes] = []
        self._most = len(order.allocations) + _KEPT
        self.transfers = 0
        self.is_leaving = False
        try:
            bases = [self._acquire(a.handle, a.reach) for a in order.allocations]
        except (CannotMap, HandleInUse) as error:
            self._release()
            raise CannotMap(str(error)) from None
        except DriverError as error:
            self._release()
            if error.is_fatal:
                raise
            raise CannotMap(explain(error)) from None
        self._groups = [[_plane_set(p.run, p.planes, bases) for p in g] for g in order.groups]

    def steps(self, order: Move, short_bytes: int) -> Iterator[Step]:
        """How an order is carried out. Its block ids have been checked by the server.

        Runs of less than `short_bytes` are staged.
        """
        offsets = np.array(order.offsets, np.int64)
        return plan(offsets, self._tables(order, len(offsets)), short_bytes)

    def objects(self, order: MoveFiles) -> Iterator[ObjectRuns]:
        """The objects of an order of which anything is wanted."""
        tables = self._tables(order, len(order.objects))
        for nth, file in enumerate(order.objects):
            rows = [table.rows(slice(nth, nth + 1)) for table in tables]
            runs = runs_of(np.zeros(1, np.int64), rows)
            if len(runs):
                yield ObjectRuns(nth, file, runs)

    def _tables(self, order: Move | MoveFiles, chunks: int) -> list[GroupTable]:
        tables = []
        for planes, ids, wanted in zip(self._groups, order.blocks, order.wanted, strict=True):
            blocks = np.frombuffer(ids, np.int64).reshape(chunks, -1)
            mask = None if wanted is None else np.frombuffer(wanted, bool).reshape(blocks.shape)
            tables.append(GroupTable(planes, blocks, mask))
        return tables

    def keep(self, handle: bytes) -> None:
        """Keep an allocation mapped that its events need again and again.

        Raises HandleInUse and DriverError.
        """
        if handle not in self._acquired and len(self._acquired) < self._most:
            self._mappings.acquire(handle, self.instance)
            self._acquired.append(handle)

    def close(self) -> None:
        """Unmap. Raises DriverError."""
        self._release()

    def _acquire(self, handle: bytes, reach: int) -> int:
        address, size = self._mappings.acquire(handle, self.instance)
        self._acquired.append(handle)
        if size is not None and reach > size:
            raise CannotMap(f"tensors reach to {reach} of an allocation of {size} bytes")
        return address

    def _release(self) -> None:
        while self._acquired:
            self._mappings.release(self._acquired.pop())


def _plane_set(run: int, planes: list[tuple[int, int, int]], bases: list[int]) -> PlaneSet:
    starts = np.array([bases[owner] + offset for owner, offset, _ in planes], np.int64)
    owners: Ints = np.array([owner for owner, _, _ in planes], np.int64)
    return PlaneSet(run, starts, np.array([stride for _, _, stride in planes], np.int64), owners)
