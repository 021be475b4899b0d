"""Where each group's bytes lie within the objects of a worker's tensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.native.arena import Arena
from connectors.native.geometry import Geometry, Part, parts

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor's part of an object: pages of `width` bytes, of which a group uses `used`.

    `offset` is from the object's beginning.
    """

    tensor: int
    width: int
    used: int
    offset: int


class Places:
    """The fields of each group of vLLM's `kv_caches` in objects of `geometry`.

    Raises ValueError if the tensors do not fit it.
    """

    def __init__(self, kv_caches: Any, geometry: Geometry) -> None:
        self._geometry = geometry
        widths = [tensor.page_size_bytes for tensor in kv_caches.tensors]
        offsets = geometry.tensor_offsets(widths)
        self.fields = [
            [
                Field(tensor, widths[tensor], used, geometry.offset + offsets[tensor])
                for tensor, used in _used(references)
            ]
            for references in kv_caches.group_data_refs
        ]
        self._gaps = [self._uncovered(fields) for fields in self.fields]

    def of(self, blocks: Any, slots: Any, arena: Arena) -> list[tuple[Part, Bytes]]:
        """The parts of a job, from vLLM's GPULoadStoreSpec and its ArenaSlots, and their slots.

        Raises ValueError where the two do not fit each other, or the arena.
        """
        geometry = self._geometry
        found = parts(
            blocks.block_ids,
            blocks.group_sizes,
            blocks.block_indices,
            slots.block_ids,
            geometry.blocks_per_chunk,
        )
        return [(part, arena.slot(part.slot, geometry.object_bytes)) for part in found]

    def rows(self, field: Field, place: Bytes) -> Bytes:
        """A field in the object at `place`, as [blocks of a chunk, bytes of a page]."""
        size = self._geometry.blocks_per_chunk * field.width
        return place[field.offset : field.offset + size].reshape(-1, field.width)

    def clear_rest(self, part: Part, place: Bytes) -> None:
        """Zero what a store of `part` leaves of this rank's share: a slot is not clean."""
        if len(part.blocks) < self._geometry.blocks_per_chunk:
            place[self._geometry.offset : self._geometry.end] = 0
        else:
            for begin, end in self._gaps[part.group]:
                place[begin:end] = 0

    def _uncovered(self, fields: Sequence[Field]) -> list[tuple[int, int]]:
        """(begin, end) of what a whole chunk with `fields` leaves of this rank's share."""
        covered = sorted(
            (begin, begin + field.used)
            for field in fields
            for begin in range(
                field.offset,
                field.offset + self._geometry.blocks_per_chunk * field.width,
                field.width,
            )
        )
        gaps, reached = [], self._geometry.offset
        for begin, end in [*covered, (self._geometry.end, self._geometry.end)]:
            if begin > reached:
                gaps.append((reached, begin))
            reached = max(reached, end)
        return gaps


def _used(references: Sequence[Any]) -> list[tuple[int, int]]:
    """(tensor, bytes of a page) of a group's references."""
    used: dict[int, int] = {}
    for reference in references:
        index = reference.tensor_idx
        used[index] = max(used.get(index, 0), reference.page_size_bytes)
    return sorted(used.items())
