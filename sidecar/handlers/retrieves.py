"""Handle mode, retrieve: from the arena into a worker's blocks."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from sidecar.cache.entry import Entry
from sidecar.engines.registry import Instance, shown
from sidecar.engines.worker_memory import Blocks, ChunkCopy
from sidecar.flow import called_back
from sidecar.handlers.chunk_copies import all_null, block_tables, count_bytes
from sidecar.handlers.core import Core, scope_of, space_of
from sidecar.wire.endpoint import DEFERRED, Refused, Request
from sidecar.wire.messages import CacheKey


class Retrieves:
    """retrieve, for workers whose memory the server has mapped."""

    def __init__(self, core: Core, lost: Callable[[Instance], None]) -> None:
        """`lost(instance)` is called when a worker could not be told the outcome."""
        self._core = core
        self._lost = lost

    async def retrieve(
        self,
        request: Request,
        key: CacheKey,
        instance_id: int,
        block_ids: list[list[int]],
        event: bytes,
        skip_first_n_tokens: int,
    ) -> Any:
        """Copy `[start, end)` from the arena into the worker's blocks, all of it or nothing.

        Whatever happens, the share of this worker in the lookup's leases ends.
        """
        core, began = self._core, self._core.now()
        core.trace(request, key)
        hashes: list[bytes] = []
        try:
            hashes = core.hashes(key, key.end - key.end % core.config.chunk_size)
            instance = core.instance(request, instance_id, key, "handle")
            memory = instance.mapped
            core.telemetry.num_submitted_retrieves.add(1, memory.device)
            tables = block_tables(core, instance, key, block_ids)
            del block_ids  # they may be many, and the copy may have to wait
            copies = self._find(instance, key, hashes, tables, skip_first_n_tokens)
            entries = [copy.entry for copy in copies]
            with core.transfer(instance), core.pinned(entries):
                loaded = not copies or await called_back(partial(memory.load, copies, event))
                self._count_reuse(entries)
                if loaded:
                    place = space_of(key, key.worker_id or 0, instance.fingerprint)
                    core.touch(place, hashes)
        finally:
            start = key.start // core.config.chunk_size
            core.leases.release(
                key.request_id, scope_of(key), hashes, start, readers=1, rank=key.worker_id
            )
        if not (loaded and core.registry.holds(instance)):
            raise Refused("forgotten" if loaded else "copy_failed")
        core.telemetry.l1_read_chunks.add(sum(map(core.is_in_l1, entries)))
        self._count(instance, key, copies, began)
        if not request.reply((request.done_event, True)):
            # It waits for this answer for ever, unless it is made to give up and register again.
            self._lost(instance)
        return DEFERRED

    def _find(
        self,
        instance: Instance,
        key: CacheKey,
        hashes: list[bytes],
        tables: list[Blocks],
        skip_tokens: int,
    ) -> list[ChunkCopy]:
        """What to copy where. Raises Refused if anything of it is not there."""
        chunks, copies = self._core.aligned_range(key), []
        for row, entry in enumerate(self._core.readable(instance, key, hashes, chunks)):
            blocks = [table[row] for table in tables]
            if entry is None:
                self._count_miss(instance)
                raise Refused("not_cached", f"chunk {chunks[row]} of {key.request_id}")
            wanted = self._wanted(instance, blocks, row, skip_tokens)
            if any(wanted[g] is None or len(wanted[g]) for g in entry.missing):  # type: ignore[arg-type]
                self._count_miss(instance)
                raise Refused(
                    "partly_cached", f"chunk {chunks[row]} lacks blocks of a windowed group"
                )
            copies.append(ChunkCopy(entry, blocks, wanted))
        return copies

    def _wanted(
        self, instance: Instance, blocks: list[Blocks], row: int, skip_tokens: int
    ) -> list[Blocks | None]:
        """Which positions of a chunk are written: not the skipped, not the null block."""
        assert instance.layout is not None
        windowed = {group for group, _ in instance.windows}
        nothing = all_null(self._core, blocks)
        wanted: list[Blocks | None] = []
        for g, (group, ids) in enumerate(zip(instance.layout.groups, blocks, strict=True)):
            skipped = skip_tokens // group.tokens_per_block - row * group.blocks_per_chunk
            write = np.arange(len(ids)) >= skipped
            if nothing or g in windowed:
                write &= ids != self._core.config.null_block_id
            wanted.append(None if write.all() else np.flatnonzero(write))
        return wanted

    def _count(
        self, instance: Instance, key: CacheKey, copies: list[ChunkCopy], began: float
    ) -> None:
        telemetry = self._core.telemetry
        telemetry.num_chunks_loaded.add(
            len(copies), str(shown(instance.id)), key.model_name, key.cache_salt
        )
        telemetry.num_finished_retrieves.add(1, instance.mapped.device)
        count_bytes(self._core, "load", instance, copies, began)

    def _count_miss(self, instance: Instance) -> None:
        self._core.telemetry.l1_read_failure_chunks.add(
            1, "l1_retrieve", "not_found", instance.model_name
        )

    def _count_reuse(self, entries: list[Entry]) -> None:
        in_l1 = next(filter(self._core.is_in_l1, entries), None)
        if in_l1 is not None:  # one chunk stands for the request: they are all used together
            gap = self._core.now() - in_l1.used_at
            self._core.telemetry.l1_chunk_reuse_gap.record(gap)
