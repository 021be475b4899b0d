"""Workers whose KV tensors lie in POSIX shared memory: map, gather, scatter.

numpy moves whole blocks: `take` gathers the blocks of a plane into a slot, an indexed
assignment scatters them back. Both copy block by block at memcpy speed and release the GIL.
"""

import math
import mmap
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sidecar.cache.arena import fill_page_tables
from sidecar.engines.groups import WorkerLayout
from sidecar.engines.layout import LayerLayout, Plane

SHM_DIR = "/dev/shm"
# What the stock client calls its segments; nothing else of /dev/shm is ever opened for it.
_CLIENT_SEGMENT = re.compile(r"/(lmcache_kv_[A-Za-z0-9._-]{1,200})")
Blocks = npt.NDArray[np.int64]


class SegmentRefused(ValueError):
    """A worker named a segment that we may not or cannot map."""


@dataclass(frozen=True, slots=True)
class MappedSegment:
    """A worker's segment, mapped for as long as somebody refers to it."""

    bytes: npt.NDArray[np.uint8]


def map_segment(name: str, nbytes: int) -> MappedSegment:
    """Map a worker's segment of at least `nbytes` bytes. May take a while: not for the loop.

    Raises SegmentRefused, also where /dev/shm cannot hold all of it: a page that does not
    exist yet and cannot be had is a SIGBUS for whoever touches it first.
    """
    match = _CLIENT_SEGMENT.fullmatch(name)
    if match is None:
        raise SegmentRefused(f"segment name {name[:64]!r}")
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(os.path.join(SHM_DIR, match[1]), flags)
    except OSError as error:
        raise SegmentRefused(f"segment {name}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not 0 < nbytes <= status.st_size:
            raise SegmentRefused(f"segment {name} has {status.st_size} of {nbytes} bytes")
        os.posix_fallocate(fd, 0, nbytes)
        segment = MappedSegment(np.frombuffer(mmap.mmap(fd, nbytes), np.uint8))
    except OSError as error:
        raise SegmentRefused(f"segment {name}: {error.strerror}") from None
    finally:
        os.close(fd)
    fill_page_tables(segment.bytes)
    return segment


class _PlaneView:
    """One plane as numpy sees it, for gathering and for scattering."""

    def __init__(self, plane: Plane, segment: MappedSegment, blocks: int) -> None:
        self.block = np.dtype((np.void, plane.run))
        self._rows: npt.NDArray[np.void] = np.ndarray(
            (blocks,), self.block, segment.bytes, plane.base, (plane.stride,)
        )
        # `take` copies a source that has gaps before it starts, so a padded plane is gathered
        # in grains: the largest unit of which both a block and the padding are multiples.
        grain = math.gcd(plane.run, plane.stride)
        self._grains_a_block, self._stride = plane.run // grain, plane.stride // grain
        count = (blocks - 1) * self._stride + self._grains_a_block
        self._grains: npt.NDArray[np.void] = np.ndarray(
            (count,), np.dtype((np.void, grain)), segment.bytes, plane.base
        )

    def gather(self, blocks: Blocks, slot: npt.NDArray[np.void]) -> None:
        if self._grains_a_block == self._stride == 1:
            self._rows.take(blocks, out=slot, mode="clip")
            return
        grains = blocks[:, None] * self._stride + np.arange(self._grains_a_block)
        self._grains.take(grains.ravel(), out=slot.view(self._grains.dtype), mode="clip")

    def scatter(self, slot: npt.NDArray[np.void], blocks: Blocks) -> None:
        self._rows[blocks] = slot


class HostWorker:
    """Reads and writes the blocks of one worker. Methods run on copy threads.

    Block ids must have been checked against the layout before: 0 <= id < blocks.
    """

    device = "cpu"

    def __init__(self, layout: WorkerLayout, segments: Sequence[MappedSegment]) -> None:
        """`segments[i]` holds the tensor whose index in the registration is i."""
        self._layout = layout
        self._views = [
            [self._layer_views(layer, segments[layer.tensor]) for layer in group.layers]
            for group in layout.groups
        ]

    @staticmethod
    def _layer_views(layer: LayerLayout, segment: MappedSegment) -> list[_PlaneView]:
        return [_PlaneView(plane, segment, layer.blocks) for plane in layer.planes]

    def gather(self, blocks_by_group: Sequence[Blocks], slot: npt.NDArray[np.uint8]) -> None:
        """Copy one chunk's blocks into `slot` (uint8, `object_bytes` long)."""
        offset = 0
        for blocks, layers in zip(blocks_by_group, self._views, strict=True):
            for plane in (plane for layer in layers for plane in layer):
                size = len(blocks) * plane.block.itemsize
                plane.gather(blocks, slot[offset : offset + size].view(plane.block))
                offset += size

    def scatter(
        self,
        slot: npt.NDArray[np.uint8],
        blocks_by_group: Sequence[Blocks],
        wanted_by_group: Sequence[Blocks | None],
    ) -> None:
        """Copy `slot` back into a chunk's blocks.

        `wanted_by_group` holds the positions in the chunk that are written, None for all.
        """
        offset = 0
        for blocks, wanted, layers in zip(
            blocks_by_group, wanted_by_group, self._views, strict=True
        ):
            for plane in (plane for layer in layers for plane in layer):
                size = len(blocks) * plane.block.itemsize
                source = slot[offset : offset + size].view(plane.block)
                offset += size
                if wanted is None:
                    plane.scatter(source, blocks)
                elif len(wanted):
                    plane.scatter(source[wanted], blocks[wanted])

    def read_layers(self, blocks: Blocks) -> list[tuple[LayerLayout, list[npt.NDArray[np.uint8]]]]:
        """The bytes of these blocks in every layer, in tensor order, a plane an array."""
        layers = [
            (layer, [self._read(plane, blocks) for plane in views])
            for group, group_views in zip(self._layout.groups, self._views, strict=True)
            for layer, views in zip(group.layers, group_views, strict=True)
        ]
        return sorted(layers, key=lambda pair: pair[0].tensor)

    @staticmethod
    def _read(plane: _PlaneView, blocks: Blocks) -> npt.NDArray[np.uint8]:
        out = np.empty(len(blocks) * plane.block.itemsize, np.uint8)
        plane.gather(blocks, out.view(plane.block))
        return out.reshape(len(blocks), -1)
