"""Where the bytes of a chunk lie in its slot, and which blocks of vLLM's they are.

A slot holds the shares of all ranks one after the other, or one for all where vLLM says that they
are equal. In a rank's share its tensors lie one after the other, of each the pages of the
chunk's blocks. A chunk belongs to one KV group; what that does not fill is zero.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from connectors.native.wire import SLOT_BYTES

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Part:
    """Some blocks of one group and the chunk that they are, or are a part of.

    `blocks` (int32, ids of vLLM's blocks) are the chunk's from its block `first` on.
    """

    group: int
    slot: int
    first: int
    blocks: Ids


@dataclass(frozen=True, slots=True)
class Geometry:
    """Sizes in bytes of one engine's objects, and where this rank's share is in them."""

    blocks_per_chunk: int
    share: int
    copies: int
    rank: int

    @classmethod
    def of(cls, config: Any, rank: int = 0) -> "Geometry":
        """By vLLM's OffloadingConfig. Raises ValueError for what has no bytes to keep."""
        share = config.worker_kv_bytes_per_block * config.cache.blocks_per_chunk
        if share <= 0:
            raise ValueError("vLLM does not say how large a block is: there is no KV to keep")
        single = config.replicated_layout
        copies = 1 if single else config.parallel.world_size
        return cls(config.cache.blocks_per_chunk, share, copies, 0 if single else rank)

    @property
    def object_bytes(self) -> int:
        return -(-self.share * self.copies // SLOT_BYTES) * SLOT_BYTES

    @property
    def offset(self) -> int:
        """Where this rank's share begins in an object."""
        return self.rank * self.share

    @property
    def end(self) -> int:
        """Where it ends; the last rank's takes the padding."""
        return self.object_bytes if self.rank == self.copies - 1 else self.offset + self.share

    def tensor_offsets(self, page_bytes: Sequence[int]) -> list[int]:
        """Where each tensor's pages begin in a share. Raises ValueError if they do not fit."""
        ends = np.cumsum([page * self.blocks_per_chunk for page in page_bytes]).tolist()
        if not ends or ends[-1] > self.share:
            raise ValueError(
                f"this rank's tensors have {ends[-1] if ends else 0} bytes a chunk, and vLLM "
                f"announces {self.share}"
            )
        return [0, *ends[:-1]]


def parts(
    block_ids: Ids,
    group_sizes: Sequence[int],
    block_indices: Sequence[int],
    slots: Ids,
    blocks_per_chunk: int,
) -> Iterator[Part]:
    """Which blocks belong to which slot, as vLLM's own worker counts them.

    `block_ids` has the blocks of all groups, `group_sizes` how many of each; of a group they are
    consecutive in its sequence from the index in `block_indices` on, so that the first and the
    last chunk may be partial. Raises ValueError where the numbers do not fit each other.
    """
    used_blocks = used_slots = 0
    for group, (count, index) in enumerate(zip(group_sizes, block_indices, strict=True)):
        first = index % blocks_per_chunk
        group_blocks = block_ids[used_blocks : used_blocks + count]
        used_blocks += count
        while len(group_blocks):
            if used_slots == len(slots):
                raise ValueError("more blocks than slots")
            room = blocks_per_chunk - first
            yield Part(group, int(slots[used_slots]), first, group_blocks[:room])
            group_blocks, first = group_blocks[room:], 0
            used_slots += 1
    if used_slots != len(slots) or used_blocks != len(block_ids):
        raise ValueError("more slots than blocks")
