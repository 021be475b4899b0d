"""Chunk copies of handle mode: which bytes of a worker go to which object, and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from sidecar.cache.entry import Entry
from sidecar.engines.copier import Piece
from sidecar.engines.host import Blocks, HostWorker
from sidecar.engines.registry import Instance
from sidecar.handlers.core import Core
from sidecar.wire.endpoint import Refused
from sidecar.wire.messages import CacheKey, blocks_by_group

# A piece is what one thread copies before another job may have its turn. Threads hand the GIL
# to each other between pieces: small ones cost a fifth of the throughput of a large transfer.
_MIN_PIECE_BYTES, _MAX_PIECE_BYTES = 2 << 20, 32 << 20
_PIECES_A_THREAD = 4


@dataclass(frozen=True, slots=True)
class ChunkCopy:
    """One chunk to copy: its object, its blocks by group, and which of them are written.

    `wanted` holds positions in the chunk by group, None for all; stores always copy all.
    """

    entry: Entry
    blocks: list[Blocks]
    wanted: list[Blocks | None]


def block_tables(
    core: Core, instance: Instance, key: CacheKey, block_ids: list[list[int] | int]
) -> list[Blocks]:
    """The block ids of `[start, end)`: by group, an array [chunks, blocks a chunk].

    Raises Refused unless they are ids of `instance` for whole chunks, BadPayload if unaligned.
    """
    assert instance.layout is not None
    groups, chunks = instance.layout.groups, len(core.aligned_range(key))
    by_group = blocks_by_group(block_ids)
    if len(by_group) != len(groups):
        raise Refused("bad_blocks", f"{len(by_group)} block lists, {len(groups)} groups")
    for group, blocks in zip(groups, by_group, strict=True):
        if len(blocks) != chunks * group.blocks_per_chunk:
            raise Refused("bad_blocks", f"{len(blocks)} block ids for {chunks} chunks")
        if blocks and max(blocks) >= group.blocks:
            raise Refused("bad_blocks", f"block {max(blocks)} of {group.blocks}")
    return [
        np.array(blocks, np.int64).reshape(chunks, group.blocks_per_chunk)
        for group, blocks in zip(groups, by_group, strict=True)
    ]


def all_null(core: Core, blocks: Sequence[Blocks]) -> bool:
    """Whether a chunk has no block at all: every id of every group is the null block's."""
    return all((ids == core.config.null_block_id).all() for ids in blocks)


def pieces(move: Callable[..., None], copies: list[ChunkCopy], threads: int) -> list[Piece]:
    """Cut a transfer into pieces for `threads` threads: some chunks each, or a part of one."""
    size = copies[0].entry.size
    even = size * len(copies) // (threads * _PIECES_A_THREAD)
    wanted = min(max(even, _MIN_PIECE_BYTES), _MAX_PIECE_BYTES)
    parts = -(-size // wanted)
    together = max(1, wanted // size)
    return [
        partial(move, copies[i : i + together], part, parts)
        for i in range(0, len(copies), together)
        for part in range(parts)
    ]


def gather(
    arena: npt.NDArray[np.uint8], host: HostWorker, copies: list[ChunkCopy], part: int, parts: int
) -> None:
    """Copy a part of chunks into their objects. For copy threads."""
    for copy in copies:
        host.gather(copy.blocks, _slot(arena, copy.entry), part, parts)


def scatter(
    arena: npt.NDArray[np.uint8], host: HostWorker, copies: list[ChunkCopy], part: int, parts: int
) -> None:
    """Copy a part of objects back into their chunks' blocks. For copy threads."""
    for copy in copies:
        host.scatter(_slot(arena, copy.entry), copy.blocks, copy.wanted, part, parts)


def count_bytes(
    core: Core, direction: str, instance: Instance, copies: list[ChunkCopy], began: float
) -> None:
    """Count a transfer (`direction` store or load) that began at `began` and has ended."""
    telemetry, moved = core.telemetry, len(copies) * instance.object_bytes
    telemetry.transfer_bytes.add(moved, direction, HostWorker.device)
    seconds = core.now() - began
    if not moved or seconds <= 0:
        return
    throughput = {
        "store": telemetry.l0_l1_store_throughput,
        "load": telemetry.l0_l1_load_throughput,
    }[direction]
    throughput.record(
        moved / seconds / 1e9, HostWorker.device, str(instance.id), instance.model_name
    )


def _slot(arena: npt.NDArray[np.uint8], entry: Entry) -> npt.NDArray[np.uint8]:
    return arena[entry.offset : entry.offset + entry.size]
