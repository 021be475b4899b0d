"""Workers whose KV tensors lie in POSIX shared memory: gather and scatter.

numpy moves whole blocks: `take` gathers rows into a slot, an indexed assignment scatters them
back. Both copy row by row at memcpy speed and release the GIL.
"""

import math
import mmap
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sidecar.engines.groups import KVGroup, WorkerLayout
from sidecar.engines.host_segments import MappedSegments
from sidecar.engines.layout import LayerLayout, Plane
from sidecar.engines.worker_memory import Blocks

_MAX_ALIGNMENT = 64 << 20


class _Rows:
    """The planes of a group that have equal runs: one array in memory, one part of a slot.

    A row is the largest unit of which runs, strides and starts are all multiples: a whole
    block where the engine packs them, a piece of one where it pads.
    """

    def __init__(self, memory: npt.NDArray[np.uint8], planes: list[Plane], run: int) -> None:
        """`planes` have absolute starts in `memory`; each is `run` bytes a block."""
        row = math.gcd(run, *(n for plane in planes for n in (plane.base, plane.stride)))
        self.dtype = np.dtype((np.void, row))
        self.block_bytes = run * len(planes)
        self._memory: npt.NDArray[np.void] = np.ndarray((len(memory) // row,), self.dtype, memory)
        self._starts = np.array([plane.base // row for plane in planes])[:, None, None]
        self._strides = np.array([plane.stride // row for plane in planes])[:, None, None]
        self._within = np.arange(run // row)

    def gather(self, blocks: Blocks, slot: npt.NDArray[np.uint8], share: slice) -> None:
        rows = self._index(blocks).ravel()[share]
        self._memory.take(rows, out=slot.view(self.dtype)[share], mode="clip")

    def scatter(self, slot: npt.NDArray[np.uint8], blocks: Blocks, share: slice) -> None:
        rows = self._index(blocks).ravel()[share]
        self._memory[rows] = slot.view(self.dtype)[share]

    def scatter_some(self, slot: npt.NDArray[np.uint8], blocks: Blocks, wanted: Blocks) -> None:
        rows = self._index(blocks)
        source = slot.view(self.dtype).reshape(rows.shape)
        self._memory[rows[:, wanted].ravel()] = source[:, wanted].ravel()

    def share(self, part: int, parts: int, blocks: int) -> slice:
        """Which rows are part `part` of `parts` when `blocks` blocks are moved."""
        count = len(self._starts) * blocks * len(self._within)
        return slice(count * part // parts, count * (part + 1) // parts)

    def _index(self, blocks: Blocks) -> Blocks:
        """Rows by plane, block and position in the block: the order of a slot."""
        rows: Blocks = self._starts + self._strides * blocks[:, None] + self._within
        return rows


class HostWorker:
    """Reads and writes the blocks of one worker. Methods run on copy threads.

    Slots are in the order of `KVGroup.planes_by_run`. Block ids must have been checked against
    the layout before: 0 <= id < blocks.
    """

    def __init__(
        self, layout: WorkerLayout, segment_of: Sequence[str], sizes: dict[str, int]
    ) -> None:
        """Map the segments (`sizes` in bytes); `segment_of[i]` is where tensor i lies.

        Raises SegmentRefused.
        """
        self._layout = layout
        self._mapped = MappedSegments(sizes, _alignment(layout))
        self._starts = [self._mapped.offsets[name] for name in segment_of]
        self._groups = [self._rows(group) for group in layout.groups]

    def gather(
        self,
        blocks_by_group: Sequence[Blocks],
        slot: npt.NDArray[np.uint8],
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """Copy part `part` of `parts` of one chunk into `slot` (uint8, `object_bytes` long)."""
        offset = 0
        for blocks, groups in zip(blocks_by_group, self._groups, strict=True):
            for rows in groups:
                size = rows.block_bytes * len(blocks)
                target = slot[offset : offset + size]
                rows.gather(blocks, target, rows.share(part, parts, len(blocks)))
                offset += size

    def scatter(
        self,
        slot: npt.NDArray[np.uint8],
        blocks_by_group: Sequence[Blocks],
        wanted_by_group: Sequence[Blocks | None],
        part: int = 0,
        parts: int = 1,
    ) -> None:
        """Copy part `part` of `parts` of `slot` back into a chunk's blocks.

        `wanted_by_group` holds the positions in the chunk that are written, None for all.
        """
        offset = 0
        for blocks, wanted, groups in zip(
            blocks_by_group, wanted_by_group, self._groups, strict=True
        ):
            for rows in groups:
                size = rows.block_bytes * len(blocks)
                source = slot[offset : offset + size]
                offset += size
                if wanted is None:
                    rows.scatter(source, blocks, rows.share(part, parts, len(blocks)))
                elif len(wanted) and part == 0:  # rare: the edge of a prefix or window
                    rows.scatter_some(source, blocks, wanted)

    @property
    def layers(self) -> list[LayerLayout]:
        """All layers, in tensor order."""
        found = (layer for group in self._layout.groups for layer in group.layers)
        return sorted(found, key=lambda layer: layer.tensor)

    def read(self, layer: LayerLayout, plane: int, blocks: Blocks) -> npt.NDArray[np.uint8]:
        """The bytes of these blocks in one plane of a layer: [blocks, run]."""
        at = self._absolute(layer.tensor, layer.planes[plane])
        starts = (at.base + blocks * at.stride).tolist()
        return np.stack([self._mapped.bytes[start : start + at.run] for start in starts])

    def _rows(self, group: KVGroup) -> list[_Rows]:
        return [
            _Rows(self._mapped.bytes, [self._absolute(*plane) for plane in planes], run)
            for run, planes in group.planes_by_run().items()
        ]

    def _absolute(self, tensor: int, plane: Plane) -> Plane:
        return Plane(self._starts[tensor] + plane.base, plane.stride, plane.run)


def _alignment(layout: WorkerLayout) -> int:
    """Where segments begin, so that blocks of all of them can be rows of one array."""
    runs = {p.run for g in layout.groups for layer in g.layers for p in layer.planes}
    alignment = math.lcm(mmap.PAGESIZE, *runs)
    return alignment if alignment <= _MAX_ALIGNMENT else mmap.PAGESIZE
