"""Chunk copies of handle mode: the blocks that a request names, and what has been moved."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sidecar.engines.registry import Instance, shown
from sidecar.engines.worker_memory import Blocks, ChunkCopy
from sidecar.handlers.core import Core
from sidecar.wire.endpoint import Refused
from sidecar.wire.messages import CacheKey


class Chunk(NamedTuple):
    """A chunk to store: its blocks by group, and the windowed groups of which it lacks some."""

    hash: bytes
    blocks: list[Blocks]
    missing: frozenset[int]


def chunks_of(
    core: Core, instance: Instance, key: CacheKey, block_ids: list[list[int]]
) -> tuple[list[Chunk], list[bytes]]:
    """The chunks of `[start, end)` that can be stored, and the hashes of the sequence to `end`.

    What lacks a block of a group without a window is nobody's prefix. Clients do not tell every
    window: of chunked-local attention, and before 0.5.5 of any (lmcache 0.5.6,
    `kv_cache_groups.py`).

    Raises as `block_tables` does.
    """
    tables, hashes = block_tables(core, instance, key, block_ids), core.hashes(key, key.end)
    null, chunks = core.config.null_block_id, []
    lacks = [(table == null).any(axis=1) for table in tables]
    windowed, doubtful = frozenset(group for group, _ in instance.windows), 0
    for row, chunk in enumerate(core.aligned_range(key)):
        blocks = [table[row] for table in tables]
        missing = frozenset(group for group, rows in enumerate(lacks) if rows[row])
        if missing and all_null(core, blocks):
            continue
        if missing <= windowed:
            chunks.append(Chunk(hashes[chunk], blocks, missing))
        else:
            doubtful += 1
    if doubtful:
        core.refusals.add("store", "null_block", f"{doubtful} chunks of {instance.model_name}")
    return chunks, hashes


def block_tables(
    core: Core, instance: Instance, key: CacheKey, block_ids: list[list[int]]
) -> list[Blocks]:
    """The block ids of `[start, end)`: by group, an array [chunks, blocks a chunk].

    Raises Refused unless they are ids of `instance` for whole chunks, BadPayload if unaligned.
    """
    assert instance.layout is not None
    groups, chunks = instance.layout.groups, len(core.aligned_range(key))
    if len(block_ids) != len(groups):
        raise Refused("bad_blocks", f"{len(block_ids)} block lists, {len(groups)} groups")
    for group, blocks in zip(groups, block_ids, strict=True):
        if len(blocks) != chunks * group.blocks_per_chunk:
            raise Refused("bad_blocks", f"{len(blocks)} block ids for {chunks} chunks")
        if blocks and max(blocks) >= group.blocks:
            raise Refused("bad_blocks", f"block {max(blocks)} of {group.blocks}")
    return [
        np.array(blocks, np.int64).reshape(chunks, group.blocks_per_chunk)
        for group, blocks in zip(groups, block_ids, strict=True)
    ]


def all_null(core: Core, blocks: Sequence[Blocks]) -> bool:
    """Whether a chunk has no block at all: every id of every group is the null block's."""
    return all((ids == core.config.null_block_id).all() for ids in blocks)


def count_bytes(
    core: Core, direction: str, instance: Instance, copies: list[ChunkCopy], began: float
) -> None:
    """Count a transfer (`direction` store or load) that began at `began` and has ended."""
    telemetry, moved = core.telemetry, len(copies) * instance.object_bytes
    device = instance.mapped.device
    telemetry.transfer_bytes.add(moved, direction, device)
    seconds = core.now() - began
    if not moved or seconds <= 0:
        return
    throughput = {
        "store": telemetry.l0_l1_store_throughput,
        "load": telemetry.l0_l1_load_throughput,
    }[direction]
    throughput.record(moved / seconds / 1e9, device, str(shown(instance.id)), instance.model_name)
