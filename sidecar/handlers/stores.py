"""Handle mode, store: from a worker's blocks into the arena."""

from collections.abc import Callable
from functools import partial
from typing import Any

from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.engines.registry import Instance
from sidecar.engines.worker_memory import ChunkCopy
from sidecar.flow import Outcome, called_back
from sidecar.handlers.chunk_copies import Chunk, chunks_of, count_bytes
from sidecar.handlers.core import Core, space_of
from sidecar.handlers.eviction import Eviction
from sidecar.telemetry.spans import Span
from sidecar.wire.endpoint import DEFERRED, Refused, Request
from sidecar.wire.messages import CacheKey


class Stores:
    """store, for workers whose memory the server has mapped."""

    def __init__(self, core: Core, eviction: Eviction, lost: Callable[[Instance], None]) -> None:
        """`lost(instance)` is called when a worker could not be told the outcome."""
        self._core = core
        self._eviction = eviction
        self._lost = lost

    async def store(
        self,
        request: Request,
        key: CacheKey,
        instance_id: int,
        block_ids: list[list[int]],
        event: bytes,
    ) -> Any:
        """Copy `[start, end)` into the arena and publish it, then answer.

        Chunks that are there already, or for which there is no room, are skipped. Those that
        another store copies now are waited for: whoever is told "stored" must find them.
        """
        core, began = self._core, self._core.now()
        span = core.trace(request, key)
        instance = core.instance(request, instance_id, key, "handle")
        chunks, hashes = chunks_of(core, instance, key, block_ids)
        place, memory = space_of(key, key.worker_id or 0, instance.fingerprint), instance.mapped
        del block_ids  # they may be many, and the copy may have to wait
        with core.transfer(instance):
            core.telemetry.num_submitted_stores.add(1, memory.device)
            others: list[Entry] = []
            copies = await self._reserve(instance, place, chunks, others, span)
            waits = [core.flows.start(entry.when_settled()) for entry in others]
            if copies:
                try:
                    await self._copy(instance, copies, event)
                    # From here to the end of the publication nobody else runs. What others copy is
                    # not waited for first: they may wait for these chunks.
                    at_once = all(wait.done for wait in waits)
                    tell = self._answer if at_once else self._check_connected
                    tell(request, instance)
                except BaseException:
                    self._abort(copies)
                    raise
                self._publish(copies, place, hashes, span)
                count_bytes(core, "store", instance, copies, began)
                self._eviction.check()
            else:
                core.touch(place, hashes)
            for wait in waits:
                await wait
            if not request.answered:
                self._answer(request, instance)
        return DEFERRED

    async def _copy(self, instance: Instance, copies: list[ChunkCopy], event: bytes) -> None:
        """Raises Refused if it failed, or the worker was dropped: its blocks may hold other KV."""
        holds, memory = self._core.registry.holds, instance.mapped
        copied = holds(instance) and await called_back(partial(memory.store, copies, event))
        if not (copied and holds(instance)):
            raise Refused("forgotten" if copied or not holds(instance) else "copy_failed")

    async def _reserve(
        self, instance: Instance, place: SpaceKey, chunks: list[Chunk], others: list[Entry],
        span: Span,
    ) -> list[ChunkCopy]:  # fmt: skip
        """Slots for the chunks that are to be written; `others` gets what is waited for besides."""
        copies = []
        for chunk in chunks:
            entry, is_new = self._claim(instance, place, chunk)
            if entry is not None and is_new:
                entry.settled = Outcome()
                copies.append(ChunkCopy(entry, chunk.blocks, [None] * len(chunk.blocks)))
            elif entry is not None and entry.settled is not None:
                # A slot that a worker fills itself has no outcome: that is the worker's business.
                others.append(entry)
        return copies

    def _abort(self, copies: list[ChunkCopy]) -> None:
        """The copies have failed, or nobody may find what they have written."""
        for copy in copies:
            self._core.l1.abort(copy.entry)

    def _publish(
        self, copies: list[ChunkCopy], place: SpaceKey, hashes: list[bytes], span: Span
    ) -> None:
        """All bytes are in place."""
        self._core.publish([copy.entry for copy in copies], place, hashes, span)

    def _claim(
        self, instance: Instance, place: SpaceKey, chunk: Chunk
    ) -> tuple[Entry | None, bool]:
        """What to write, (entry, True); or who writes it already; or (None, False)."""
        core = self._core
        space = core.l1.space(place)
        if space is not None and chunk.hash in space.writing:
            under_way = space.writing[chunk.hash]
            if not core.tiers.loads.give_up(under_way):
                return under_way, False
        ready = space.ready.get(chunk.hash) if space is not None else None
        # What lacks blocks of a windowed group is worth less than what we are offered now.
        if ready is not None:
            if not (chunk.missing < ready.missing and core.l1.discard(ready)):
                return None, False
            core.tiers.superseded(place, chunk.hash)
        size, near = instance.object_bytes, instance.mapped.near
        entry = core.l1.reserve(place, chunk.hash, size, chunk.missing, near)
        if entry is None:
            core.telemetry.l1_allocation_failure_chunks.add(1, "l1_store", instance.model_name)
        return entry, entry is not None

    def _check_connected(self, request: Request, instance: Instance) -> None:
        """Raises Refused for a worker without its connection: it has given its requests up, and
        may have used its blocks for something else while they were copied.
        """
        if not request.is_connected():
            self._lost(instance)
            raise Refused("forgotten")

    def _answer(self, request: Request, instance: Instance) -> None:
        """Tell the worker that it is stored. Raises Refused if that is not delivered."""
        self._core.telemetry.num_finished_stores.add(1, instance.mapped.device)
        if not request.reply((request.done_event, True)):
            self._lost(instance)
            raise Refused("forgotten")
