"""Handle mode, store: from a worker's blocks into the arena, or into files past it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.engines.memory import Blocks, ChunkCopy
from sidecar.engines.registry import Instance
from sidecar.flow import Outcome
from sidecar.handlers.chunk_copies import all_null, block_tables, count_bytes
from sidecar.handlers.core import Core, space_of
from sidecar.handlers.eviction import Eviction
from sidecar.telemetry.spans import Span
from sidecar.wire.endpoint import DEFERRED, Request
from sidecar.wire.messages import CacheKey


@dataclass(eq=False, slots=True)
class _Store:
    """A store under way, of chunks of the sequence `hashes`.

    Its own copy and the copies of others are what it `waits_for`.
    """

    request: Request
    instance: Instance
    place: SpaceKey
    hashes: list[bytes]
    answer: tuple[bytes, bool]
    copies: list[ChunkCopy]
    began: float
    span: Span
    waits_for: int


class Stores:
    """store, for workers whose memory the server has mapped."""

    def __init__(self, core: Core, eviction: Eviction, lost: Callable[[Instance], None]) -> None:
        """`lost(instance)` is called when a worker could not be told the outcome."""
        self._core = core
        self._eviction = eviction
        self._lost = lost

    def store(
        self,
        request: Request,
        key: CacheKey,
        instance_id: int,
        block_ids: list[list[int]],
        event: bytes,
    ) -> Any:
        """Copy `[start, end)` into the arena or into files and publish it, then answer.

        Chunks that are there already, or for which there is no room, are skipped.
        """
        core = self._core
        span = core.trace(request, key)
        instance = core.instance(request, instance_id, key, "handle")
        tables = block_tables(core, instance, key, block_ids)
        hashes = core.hashes(key, key.end)
        core.admit(instance)
        core.telemetry.num_submitted_stores.add(1, instance.mapped.device)
        place = space_of(key, key.worker_id or 0, instance.fingerprint)
        copies, others = self._reserve(instance, key, place, hashes, tables)
        answer = instance.mapped.done_event(event), True
        store = _Store(
            request, instance, place, hashes, answer, copies, core.now(), span, 1 + len(others)
        )
        for entry in others:
            self._when_settled(entry, partial(self._one_done, store))
        below = [copy.entry for copy in copies if not copy.entry.in_arena]
        core.tiers.direct_stores.prepare(below, span, partial(self._copy, store, event))
        return DEFERRED

    def _copy(self, store: _Store, event: bytes) -> None:
        """Where objects go to files, these are there now, as far as they could be made."""
        store.copies = [copy for copy in map(partial(self._placed, store), store.copies) if copy]
        # Only now: who is told of files that could not be made may be found to be gone.
        if not self._core.registry.holds(store.instance):
            self._end_store(store, True)
        elif store.copies:
            store.instance.mapped.store(store.copies, event, partial(self._end_store, store))
        else:
            self._core.l1.touch(store.place, store.hashes)
            self._one_done(store)

    def _placed(self, store: _Store, copy: ChunkCopy) -> ChunkCopy | None:
        """The copy, to the L1 if there is no file; None if there is no need or no room for it."""
        entry = copy.entry
        if entry.in_arena or entry.file is not None:
            return copy
        place = entry.space.key
        other, is_new = self._claim_l1(store.instance, place, entry.hash, entry.missing)
        if other is not None:
            if is_new:
                other.settled = Outcome()
            else:
                store.waits_for += 1
                self._when_settled(other, partial(self._one_done, store))
            # Who waits for this one waits for the other from now on.
            entry.settle(other)
        self._core.tiers.direct_stores.give_up([entry])
        return ChunkCopy(other, copy.blocks, copy.wanted) if is_new and other is not None else None

    def _reserve(
        self, instance: Instance, key: CacheKey, space_key: SpaceKey, hashes: list[bytes],
        tables: list[Blocks],
    ) -> tuple[list[ChunkCopy], list[Entry]]:  # fmt: skip
        """Slots for the chunks that are to be written, and the entries others are writing."""
        core, copies, others = self._core, [], []
        for row, chunk in enumerate(core.aligned_range(key)):
            blocks = [table[row] for table in tables]
            if all_null(self._core, blocks):
                continue
            entry, is_new = self._claim(instance, space_key, hashes[chunk], blocks)
            if is_new and entry is not None:
                entry.settled = Outcome()
                copies.append(ChunkCopy(entry, blocks, [None] * len(blocks)))
            elif entry is not None:
                others.append(entry)
        return copies, others

    def _claim(
        self, instance: Instance, space_key: SpaceKey, chunk_hash: bytes, blocks: list[Blocks]
    ) -> tuple[Entry | None, bool]:
        """What to write, (entry, True); or who writes it already; or (None, False)."""
        core, null = self._core, self._core.config.null_block_id
        missing = frozenset(g for g, _ in instance.windows if (blocks[g] == null).any())
        to_file = instance.mapped.moves_files and not missing
        if to_file and not core.l1.knows(space_key, chunk_hash):
            claim = core.tiers.direct_stores.claim(space_key, chunk_hash, instance.object_bytes)
            if claim is not None:
                return claim
        return self._claim_l1(instance, space_key, chunk_hash, missing)

    def _claim_l1(
        self, instance: Instance, space_key: SpaceKey, chunk_hash: bytes, missing: frozenset[int]
    ) -> tuple[Entry | None, bool]:
        core = self._core
        space = core.l1.space(space_key)
        if space is not None and chunk_hash in space.writing:
            under_way = space.writing[chunk_hash]
            if not core.tiers.loads.give_up(under_way):
                return under_way, False
        ready = space.ready.get(chunk_hash) if space is not None else None
        # What lacks blocks of a windowed group is worth less than what we are offered now.
        if ready is not None:
            if not (missing < ready.missing and core.l1.discard(ready)):
                return None, False
            core.tiers.superseded(space_key, chunk_hash)
        size, near = instance.object_bytes, instance.mapped.near
        entry = core.l1.reserve(space_key, chunk_hash, size, missing, near)
        if entry is None:
            core.telemetry.l1_allocation_failure_chunks.add(1, "l1_store", instance.model_name)
        return entry, entry is not None

    def _end_store(self, store: "_Store", ok: bool) -> None:
        """The copy has ended: answer and publish, or neither, in one turn of the loop."""
        core = self._core
        above = [copy.entry for copy in store.copies if copy.entry.in_arena]
        below = [copy.entry for copy in store.copies if not copy.entry.in_arena]
        store.waits_for += len(below)
        for entry in below:
            self._when_settled(entry, partial(self._one_done, store))
        if ok and self._may_publish(store):
            core.publish(above, store.place, store.hashes, store.span)
            core.tiers.direct_stores.publish(below)
            count_bytes(core, "store", store.instance, store.copies, store.began)
            self._eviction.check()
        else:
            store.request.refuse("forgotten" if ok else "copy_failed")
            for entry in above:
                core.l1.abort(entry)
            core.tiers.direct_stores.give_up(below)
        self._one_done(store)

    def _may_publish(self, store: "_Store") -> bool:
        """Whether its worker still waits for the answer, which is sent if nothing else is missing.

        One that was dropped, or has lost its connection, may have used its blocks for something
        else while they were copied.
        """
        if not self._core.registry.holds(store.instance):
            return False
        if store.waits_for == 1:
            return self._answer(store)
        # What the others copy must not be waited for: they may be waiting for these chunks.
        connected = store.request.is_connected()
        if not connected:
            self._lost(store.instance)
        return connected

    def _one_done(self, store: "_Store") -> None:
        store.waits_for -= 1
        if not store.waits_for:
            self._answer(store)
            store.instance.transfers -= 1

    def _answer(self, store: "_Store") -> bool:
        if store.request.answered:
            return False
        self._core.telemetry.num_finished_stores.add(1, store.instance.mapped.device)
        delivered = store.request.reply(store.answer)
        if not delivered:
            self._lost(store.instance)
        return delivered

    def _when_settled(self, entry: Entry, callback: Callable[[], None]) -> None:
        """Run `callback` when a copy that another store has begun has ended.

        Whoever is told "stored" must find it. A slot that a worker fills itself is not waited
        for: how long that takes is the worker's business.
        """
        if entry.settled is None:
            callback()
        else:
            flows = self._core.flows
            flows.when(flows.start(entry.when_settled()), callback)
