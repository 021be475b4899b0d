"""From block tables to runs, and from runs to steps: what is copied, in which portions.

A run is contiguous on both sides: in the worker's memory and in the arena. Links move runs of
28 KiB and more at full speed one by one; shorter ones (H100: 7 GB/s at 16 KiB, vLLM PR#42212)
go through a staging buffer on the GPU, where a kernel gathers or scatters them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidecar.cache.arena import PIECE_BYTES  # pinned at once, too; no copy may span two

Ints = npt.NDArray[np.int64]

STEP_BYTES = 16 << 20
STEP_RUNS = 4096
# What is published for an H100. `calibration` finds what this GPU's is.
SHORT_BYTES = 28 << 10
# Fewer short runs than these are not worth a kernel.
_FEW = 16


@dataclass(frozen=True, slots=True)
class PlaneSet:
    """Planes with runs of `run` bytes: block b of plane p is at `starts[p] + b * strides[p]`.

    Planes with the same `owners[p]` lie in one allocation.
    """

    run: int
    starts: Ints
    strides: Ints
    owners: Ints


@dataclass(frozen=True, slots=True)
class GroupTable:
    """The block table of one group: `blocks` [chunks, blocks a chunk]; `wanted` None = all."""

    planes: Sequence[PlaneSet]
    blocks: Ints
    wanted: npt.NDArray[np.bool_] | None

    def rows(self, chunks: slice) -> "GroupTable":
        """The same for some of the chunks."""
        wanted = None if self.wanted is None else self.wanted[chunks]
        return GroupTable(self.planes, self.blocks[chunks], wanted)

    @property
    def chunk_bytes(self) -> int:
        """What the group takes of an object."""
        planes = sum(planes.run * len(planes.starts) for planes in self.planes)
        return int(self.blocks.shape[1]) * planes


@dataclass(frozen=True, slots=True)
class Runs:
    """Parallel arrays: device addresses, offsets in the arena, sizes in bytes."""

    device: Ints
    offset: Ints
    size: Ints

    def __len__(self) -> int:
        return len(self.size)

    def take(self, which: slice | npt.NDArray[np.bool_]) -> "Runs":
        return Runs(self.device[which], self.offset[which], self.size[which])


@dataclass(frozen=True, slots=True)
class Step:
    """What one portion moves; a `staged` one fits into a staging buffer."""

    runs: Runs
    staged: bool


def plan(offsets: Ints, groups: Sequence[GroupTable], short_bytes: int) -> Iterator[Step]:
    """The steps that copy chunks, whose objects begin at `offsets` in the arena.

    Runs of less than `short_bytes` are staged.

    A few chunks are planned at a time: the first bytes move while the rest is thought about.
    """
    together = max(1, STEP_BYTES // sum(group.chunk_bytes for group in groups))
    for at in range(0, len(offsets), together):
        chunks = slice(at, at + together)
        runs = runs_of(offsets[chunks], [group.rows(chunks) for group in groups])
        yield from steps_of(runs, short_bytes)


def runs_of(offsets: Ints, groups: Sequence[GroupTable]) -> Runs:
    """The runs of chunks whose objects begin at `offsets` in the arena, neighbours merged.

    Objects are in the order of `KVGroup.planes_by_run`.
    """
    parts, start = [], 0
    for group in groups:
        for planes in group.planes:
            parts.append(_runs(offsets + start, group, planes))
            start += planes.run * len(planes.starts) * group.blocks.shape[1]
    return _joined(parts)


def split(runs: Runs, piece: int = PIECE_BYTES) -> Runs:
    """The same bytes in runs none of which crosses a multiple of `piece` in the arena."""
    first = runs.offset // piece
    pieces = (runs.offset + runs.size - 1) // piece - first + 1
    if (pieces == 1).all():
        return runs
    of = np.repeat(np.arange(len(runs)), pieces)
    nth = np.arange(len(of)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    edge = (first[of] + nth) * piece
    begin = np.maximum(runs.offset[of], edge)
    end = np.minimum((runs.offset + runs.size)[of], edge + piece)
    return Runs(runs.device[of] + begin - runs.offset[of], begin, end - begin)


def steps_of(runs: Runs, short_bytes: int) -> list[Step]:
    """Portions of at most STEP_RUNS runs and, but for a single longer run, STEP_BYTES bytes.

    Runs of less than `short_bytes` are staged.
    """
    runs = split(runs)
    short = runs.size < short_bytes
    if np.count_nonzero(short) < _FEW:
        return [Step(part, False) for part in _portions(runs)]
    direct = [Step(part, False) for part in _portions(runs.take(~short))]
    return direct + [Step(part, True) for part in _portions(runs.take(short))]


def windows(runs: Runs, piece: int = PIECE_BYTES) -> Runs:
    """The stretches of the arena that these runs cover, when they are staged one after another.

    `device` is the place in the staging buffer, from zero.
    """
    place = np.cumsum(runs.size) - runs.size
    follows = runs.offset[1:] == (runs.offset + runs.size)[:-1]
    follows &= runs.offset[1:] // piece == runs.offset[:-1] // piece
    return _merged(place, runs.offset, runs.size, follows)


def _runs(offsets: Ints, group: GroupTable, planes: PlaneSet) -> Runs:
    count = group.blocks.shape[1]
    device = planes.starts[None, :, None] + planes.strides[None, :, None] * group.blocks[:, None, :]
    within = np.arange(len(planes.starts) * count).reshape(1, -1, count) * planes.run
    offset = offsets[:, None, None] + within
    owner = np.broadcast_to(planes.owners[None, :, None], device.shape)
    if group.wanted is None:
        device, offset, owner = device.ravel(), offset.ravel(), owner.ravel()
    else:
        wanted = np.broadcast_to(group.wanted[:, None, :], device.shape)
        device, offset, owner = device[wanted], offset[wanted], owner[wanted]
    # Addresses may be adjacent by chance where the allocations are two.
    follows = (device[1:] == device[:-1] + planes.run) & (owner[1:] == owner[:-1])
    follows &= offset[1:] == offset[:-1] + planes.run
    return _merged(device, offset, np.full(len(device), planes.run), follows)


def _merged(device: Ints, offset: Ints, size: Ints, follows: npt.NDArray[np.bool_]) -> Runs:
    """Join each run with the one before it where `follows`, which is one shorter."""
    if not len(size):
        return Runs(device, offset, size)
    first = np.flatnonzero(np.concatenate(([True], ~follows)))
    return Runs(device[first], offset[first], np.add.reduceat(size, first))


def _joined(parts: list[Runs]) -> Runs:
    return Runs(
        np.concatenate([p.device for p in parts]),
        np.concatenate([p.offset for p in parts]),
        np.concatenate([p.size for p in parts]),
    )


def _portions(runs: Runs) -> list[Runs]:
    ends, parts, at = np.cumsum(runs.size), [], 0
    while at < len(runs):
        before = int(ends[at - 1]) if at else 0
        fits = int(np.searchsorted(ends, before + STEP_BYTES, "right"))
        end = min(max(fits, at + 1), at + STEP_RUNS)
        parts.append(runs.take(slice(at, end)))
        at = end
    return parts
