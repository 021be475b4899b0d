"""Handle mode: the server copies between a worker's blocks and the arena."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.engines.copier import Piece
from sidecar.engines.host import Blocks, HostWorker
from sidecar.engines.registry import Instance
from sidecar.handlers.core import Core, check_blocks, scope_of, space_of
from sidecar.handlers.eviction import Eviction
from sidecar.wire.endpoint import DEFERRED, Refused, Request
from sidecar.wire.messages import CacheKey, blocks_by_group

# A piece is what one thread copies before another job may have its turn.
_PIECE_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class ChunkCopy:
    """One chunk to copy: its object, its blocks by group, and which of them are written.

    `wanted` holds positions in the chunk by group, None for all; stores always copy all.
    """

    entry: Entry
    blocks: list[Blocks]
    wanted: list[Blocks | None]


@dataclass(eq=False, slots=True)
class _Store:
    """A store under way: its own copy and the copies of others are what it `waits_for`."""

    request: Request
    instance: Instance
    answer: tuple[bytes, bool]
    copies: list[ChunkCopy]
    began: float
    waits_for: int


class Transfers:
    """store and retrieve of workers whose memory the server has mapped."""

    def __init__(self, core: Core, eviction: Eviction) -> None:
        self._core = core
        self._eviction = eviction

    def store(
        self,
        request: Request,
        key: CacheKey,
        instance_id: int,
        block_ids: list[list[int] | int],
        event: bytes,
    ) -> Any:
        """Copy `[start, end)` into the arena and publish it, then answer.

        Chunks that are there already, or for which there is no room, are skipped.
        """
        core = self._core
        instance = core.instance(request, instance_id, key, "handle")
        tables = self._tables(instance, key, block_ids)
        hashes = core.hashes(key, key.end)
        core.admit(instance)
        core.telemetry.num_submitted_stores.add(1, HostWorker.device)
        copies, others = self._reserve(instance, key, hashes, tables)
        store = _Store(request, instance, (event, True), copies, core.now(), 1 + len(others))
        for entry in others:
            _when_settled(entry, partial(self._one_done, store))
        if not copies:
            self._one_done(store)
            return DEFERRED
        copy_in = partial(_gather, core.arena.bytes, instance.mapped)
        core.copies.submit(_pieces(copy_in, copies), partial(self._end_store, store))
        return DEFERRED

    def retrieve(
        self,
        request: Request,
        key: CacheKey,
        instance_id: int,
        block_ids: list[list[int] | int],
        event: bytes,
        skip_first_n_tokens: int,
    ) -> Any:
        """Copy `[start, end)` from the arena into the worker's blocks, all of it or nothing.

        Whatever happens, the share of this worker in the lookup's leases ends.
        """
        core = self._core
        core.telemetry.num_submitted_retrieves.add(1, HostWorker.device)
        hashes: list[bytes] = []
        try:
            hashes = core.hashes(key, key.end - key.end % core.config.chunk_size)
            instance = core.instance(request, instance_id, key, "handle")
            tables = self._tables(instance, key, block_ids)
            copies = self._find(instance, key, hashes, tables, skip_first_n_tokens)
            core.admit(instance)
        except Exception:
            self._release(key, hashes)
            raise
        for copy in copies:
            core.l1.pin(copy.entry)
        end = partial(self._end_retrieve, request, instance, key, hashes, copies, event, core.now())
        if not copies:
            end(True)
            return DEFERRED
        copy_out = partial(_scatter, core.arena.bytes, instance.mapped)
        core.copies.submit(_pieces(copy_out, copies), end)
        return DEFERRED

    def _tables(
        self, instance: Instance, key: CacheKey, block_ids: list[list[int] | int]
    ) -> list[Blocks]:
        """Checked block ids: by group, an array [chunks, blocks a chunk]."""
        chunks = len(self._core.aligned_range(key))
        by_group = blocks_by_group(block_ids)
        check_blocks(instance, by_group, chunks)
        return [np.array(ids, np.int64).reshape(chunks, -1) for ids in by_group]

    def _reserve(
        self, instance: Instance, key: CacheKey, hashes: list[bytes], tables: list[Blocks]
    ) -> tuple[list[ChunkCopy], list[Entry]]:
        """Slots for the chunks that are to be written, and the entries others are writing."""
        core, copies, others = self._core, [], []
        space_key = space_of(key, key.worker_id or 0, instance.fingerprint)
        for row, chunk in enumerate(core.aligned_range(key)):
            blocks = [table[row] for table in tables]
            if self._is_null(blocks):
                continue
            entry, is_new = self._claim(instance, space_key, hashes[chunk], blocks)
            if is_new and entry is not None:
                entry.on_settled = []
                copies.append(ChunkCopy(entry, blocks, [None] * len(blocks)))
            elif entry is not None:
                others.append(entry)
        return copies, others

    def _claim(
        self, instance: Instance, space_key: SpaceKey, chunk_hash: bytes, blocks: list[Blocks]
    ) -> tuple[Entry | None, bool]:
        """A slot to write, (entry, True); or who writes it already; or (None, False)."""
        core = self._core
        space = core.l1.space(space_key)
        if space is not None and chunk_hash in space.ready:
            return None, False
        if space is not None and chunk_hash in space.writing:
            return space.writing[chunk_hash], False
        null = core.config.null_block_id
        missing = frozenset(g for g, _ in instance.windows if (blocks[g] == null).any())
        entry = core.l1.reserve(space_key, chunk_hash, instance.object_bytes, missing)
        if entry is None:
            core.telemetry.l1_allocation_failure_chunks.add(1, "l1_store", instance.model_name)
        return entry, entry is not None

    def _is_null(self, blocks: Sequence[Blocks]) -> bool:
        null = self._core.config.null_block_id
        return all((ids == null).all() for ids in blocks)

    def _end_store(self, store: "_Store", ok: bool) -> None:
        """The copy has ended: answer and publish, or neither, in one turn of the loop."""
        core = self._core
        if not ok:
            store.request.refuse("copy_failed")
        elif store.waits_for == 1:
            # Nothing of a worker that died meanwhile is published.
            ok = self._answer(store)
        # The last chunk first: it is the least recently used then, and the one to lose.
        for copy in reversed(store.copies):
            if ok:
                core.l1.commit(copy.entry)
            else:
                core.l1.abort(copy.entry)
        if ok:
            core.telemetry.l1_write_chunks.add(len(store.copies))
            self._count_bytes("store", store.instance, store.copies, store.began)
            self._eviction.check()
        self._one_done(store)

    def _one_done(self, store: "_Store") -> None:
        store.waits_for -= 1
        if not store.waits_for:
            self._answer(store)
            store.instance.transfers -= 1

    def _answer(self, store: "_Store") -> bool:
        if store.request.answered:
            return False
        self._core.telemetry.num_finished_stores.add(1, HostWorker.device)
        return store.request.reply(store.answer)

    def _find(
        self,
        instance: Instance,
        key: CacheKey,
        hashes: list[bytes],
        tables: list[Blocks],
        skip_tokens: int,
    ) -> list[ChunkCopy]:
        """What to copy where. Raises Refused if anything of it is not there."""
        space = self._core.l1.space(space_of(key, key.worker_id or 0, instance.fingerprint))
        copies = []
        for row, chunk in enumerate(self._core.aligned_range(key)):
            entry = space.ready.get(hashes[chunk]) if space is not None else None
            blocks = [table[row] for table in tables]
            if entry is None:
                self._count_miss(instance)
                raise Refused("not_cached", f"chunk {chunk} of {key.request_id}")
            wanted = self._wanted(instance, blocks, row, skip_tokens)
            if any(wanted[g] is None or len(wanted[g]) for g in entry.missing):  # type: ignore[arg-type]
                self._count_miss(instance)
                raise Refused("partly_cached", f"chunk {chunk} lacks blocks of a windowed group")
            copies.append(ChunkCopy(entry, blocks, wanted))
        return copies

    def _wanted(
        self, instance: Instance, blocks: list[Blocks], row: int, skip_tokens: int
    ) -> list[Blocks | None]:
        """Which positions of a chunk are written: not the skipped, not the null block."""
        assert instance.layout is not None
        windowed = {group for group, _ in instance.windows}
        all_null = self._is_null(blocks)
        wanted: list[Blocks | None] = []
        for g, (group, ids) in enumerate(zip(instance.layout.groups, blocks, strict=True)):
            skipped = skip_tokens // group.tokens_per_block - row * group.blocks_per_chunk
            write = np.arange(len(ids)) >= skipped
            if all_null or g in windowed:
                write &= ids != self._core.config.null_block_id
            wanted.append(None if write.all() else np.flatnonzero(write))
        return wanted

    def _end_retrieve(
        self,
        request: Request,
        instance: Instance,
        key: CacheKey,
        hashes: list[bytes],
        copies: list[ChunkCopy],
        event: bytes,
        began: float,
        ok: bool,
    ) -> None:
        core = self._core
        instance.transfers -= 1
        self._count_reuse(copies)
        for copy in reversed(copies):
            core.l1.unpin(copy.entry)
        self._release(key, hashes)
        if not ok:
            request.refuse("copy_failed")
            return
        core.telemetry.l1_read_chunks.add(len(copies))
        core.telemetry.num_chunks_loaded.add(
            len(copies), str(instance.id), key.model_name, key.cache_salt
        )
        core.telemetry.num_finished_retrieves.add(1, HostWorker.device)
        self._count_bytes("load", instance, copies, began)
        request.reply((event, True))

    def _release(self, key: CacheKey, hashes: list[bytes]) -> None:
        start = key.start // self._core.config.chunk_size
        self._core.leases.release(
            key.request_id, scope_of(key), hashes, start, readers=1, rank=key.worker_id
        )

    def _count_miss(self, instance: Instance) -> None:
        self._core.telemetry.l1_read_failure_chunks.add(
            1, "l1_retrieve", "not_found", instance.model_name
        )

    def _count_reuse(self, copies: list[ChunkCopy]) -> None:
        if copies:  # one chunk stands for the request: they are all used together
            gap = self._core.now() - copies[0].entry.used_at
            self._core.telemetry.l1_chunk_reuse_gap.record(gap)

    def _count_bytes(
        self, direction: str, instance: Instance, copies: list[ChunkCopy], began: float
    ) -> None:
        telemetry, moved = self._core.telemetry, len(copies) * instance.object_bytes
        telemetry.transfer_bytes.add(moved, direction, HostWorker.device)
        seconds = self._core.now() - began
        if not moved or seconds <= 0:
            return
        throughput = {
            "store": telemetry.l0_l1_store_throughput,
            "load": telemetry.l0_l1_load_throughput,
        }[direction]
        throughput.record(
            moved / seconds / 1e9, HostWorker.device, str(instance.id), instance.model_name
        )


def _when_settled(entry: Entry, callback: Callable[[], None]) -> None:
    """Run `callback` when a copy that another store has begun has ended.

    Whoever is told "stored" must find it. A slot that a worker fills itself is not waited
    for: how long that takes is the worker's business.
    """
    if entry.on_settled is None:
        callback()
    else:
        entry.on_settled.append(callback)


def _pieces(move: Callable[..., None], copies: list[ChunkCopy]) -> list[Piece]:
    """Cut a transfer into pieces of about `_PIECE_BYTES`: some chunks, or a part of one."""
    size = copies[0].entry.size
    parts = -(-size // _PIECE_BYTES)
    together = max(1, _PIECE_BYTES // size)
    return [
        partial(move, copies[i : i + together], part, parts)
        for i in range(0, len(copies), together)
        for part in range(parts)
    ]


def _gather(
    arena: npt.NDArray[np.uint8], host: HostWorker, copies: list[ChunkCopy], part: int, parts: int
) -> None:
    for copy in copies:
        host.gather(copy.blocks, _slot(arena, copy.entry), part, parts)


def _scatter(
    arena: npt.NDArray[np.uint8], host: HostWorker, copies: list[ChunkCopy], part: int, parts: int
) -> None:
    for copy in copies:
        host.scatter(_slot(arena, copy.entry), copy.blocks, copy.wanted, part, parts)


def _slot(arena: npt.NDArray[np.uint8], entry: Entry) -> npt.NDArray[np.uint8]:
    return arena[entry.offset : entry.offset + entry.size]
