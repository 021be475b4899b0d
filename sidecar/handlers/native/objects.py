"""Objects of the native door: slots to write to, publication, lookups, pins."""

import itertools
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.cache.leases import Scope
from sidecar.flow import Flow
from sidecar.handlers.core import Core
from sidecar.handlers.eviction import Eviction
from sidecar.handlers.native.below import Arrived, Below
from sidecar.handlers.native.engines import Engine, Engines, NativeRequest
from sidecar.handlers.native.membership import Membership
from sidecar.handlers.native.names import padded
from sidecar.handlers.shares import write_share
from sidecar.telemetry.spans import NO_SPAN
from sidecar.wire import native as wire
from sidecar.wire.endpoint import Refused, Request

_HASH_BYTES = 32
_DEVICE = "native"
# Of one lookup, and of those of a connection that wait for L2. A prompt of a million tokens has
# 65,536 in each group. And of one lookup, objects that are loaded one by one.
_MAX_HASHES, _MAX_LOADS = 2**17, 1024
# Where slots are that have no name yet; no worker's objects are ever in such a space.
_UNNAMED = bytes(16)


class Objects:
    """native_reserve, _publish, _return, _lookup, _finish and _resume."""

    def __init__(
        self, core: Core, engines: Engines, membership: Membership, eviction: Eviction
    ) -> None:
        self._core = core
        self._engines = engines
        self._membership = membership
        self._eviction = eviction
        self._below = Below(core)
        self._names = itertools.count()
        self._asking: Counter[bytes] = Counter()  # hashes, of each connection

    def reserve(self, request: Request, ask: wire.Reserve) -> list[int]:
        """Slots that the engine's workers may write to, before it is known what they will hold."""
        engine = self._membership.engine(request, ask.session)
        if not engine.ready:
            return []
        slots, room = [], self._share(engine)
        space = SpaceKey(engine.attach.model, engine.attach.ranks, 0, "", _UNNAMED)
        for _ in range(ask.count):
            name = next(self._names).to_bytes(_HASH_BYTES, "big")
            size = engine.attach.object_bytes
            entry = self._core.l1.reserve(space, name, size) if room > 0 else None
            if entry is None:
                failures = self._core.telemetry.l1_allocation_failure_chunks
                failures.add(1, "l1_store", engine.attach.model)
                break
            room -= entry.slot_bytes
            engine.reserve(_slot(entry), entry)
            slots.append(_slot(entry))
        return slots

    def publish(self, request: Request, ask: wire.Publish) -> int:
        """All ranks have written these objects: they are visible from now on."""
        engine = self._membership.engine(request, ask.session)
        if not engine.ready:
            raise Refused("not_ready", f"session {engine.session}")
        by_group: dict[int, list[tuple[bytes, Entry]]] = {}
        for group, name, slot in ask.items:
            entry = engine.take(slot)
            if entry is None or group >= engine.attach.groups:
                if entry is not None:
                    self._core.l1.abort(entry)
                self._core.refusals.add("native_publish", "unknown_reservation", f"slot {slot}")
                continue
            by_group.setdefault(group, []).append((padded(name), entry))
        count = 0
        for group, items in by_group.items():
            sequence = engine.sequence(ask.request, group)
            count += self._publish(engine.spaces[group], sequence, items)
        self._core.telemetry.num_finished_stores.add(1, _DEVICE)
        self._core.telemetry.transfer_bytes.add(
            count * engine.attach.object_bytes, "store", _DEVICE
        )
        self._eviction.check()
        return count

    def return_slots(self, request: Request, ask: wire.Return) -> bool:
        """Nobody writes to these any more, and they are not published."""
        engine = self._membership.engine(request, ask.session)
        for slot in ask.slots:
            entry = engine.take(slot)
            if entry is not None:
                self._core.l1.abort(entry)
        return True

    async def lookup(self, request: Request, ask: wire.NativeLookup) -> list[list[int]]:
        """Where the objects are; each hit is pinned for the request until it is finished."""
        engine = self._membership.engine(request, ask.session)
        if not engine.ready:
            return [[wire.MISS] * len(group.hashes) for group in ask.groups]
        if any(group.group >= engine.attach.groups for group in ask.groups):
            raise Refused("bad_payload", f"the engine has {engine.attach.groups} groups")
        count = sum(len(group.hashes) for group in ask.groups)
        if count > _MAX_HASHES:
            raise Refused("too_many_hashes", f"{count} in a lookup")
        known = engine.request(ask.request)
        if known is None:
            raise Refused("too_many_lookups", f"{len(engine.requests)} requests hold something")
        hashes = [[padded(each) for each in group.hashes] for group in ask.groups]
        if not known.sequences:
            self._record(engine, ask, hashes)
        for group, names in zip(ask.groups, hashes, strict=True):
            if not group.load:
                self._engines.remember(engine, known, group.group, names)
        answer = [
            self._in_l1(engine, known, group, names)
            for group, names in zip(ask.groups, hashes, strict=True)
        ]
        from_l2 = 0
        if self._core.tiers.backends:
            with self._waiting(engine.client, count) as may_wait:
                if may_wait:
                    from_l2 = await self._from_below(engine, known, ask, hashes, answer)
        self._count(engine, ask, answer, from_l2)
        return answer

    def finish(self, request: Request, ask: wire.Finish) -> bool:
        """No copy of what these requests found is under way any more."""
        engine = self._membership.engine(request, ask.session)
        for name, used in ask.requests:
            known = engine.requests.get(name)
            if known is None:
                continue
            if used:
                self._use(engine, known)
            self._unpin(engine, known)
        return True

    def resume(self, request: Request, ask: wire.Resume) -> bool:
        """All that the engine has after it has attached again; the rest of its own is free.

        Only its present connection is heard, so what was asked for on an earlier one has been
        answered before, or is refused.
        """
        engine = self._membership.engine(request, ask.session)
        slots, requests = set(ask.slots), set(ask.requests)
        for slot in [slot for slot in engine.reserved if slot not in slots]:
            entry = engine.take(slot)
            assert entry is not None
            self._core.l1.abort(entry)
        for name, known in engine.requests.items():
            if name not in requests:
                self._unpin(engine, known)
        return True

    def let_go(self, engine: Engine) -> None:
        """No process can touch anything of it any more."""
        for slot in list(engine.reserved):
            entry = engine.take(slot)
            assert entry is not None
            self._core.l1.release_withdrawn(entry)
        for known in engine.requests.values():
            self._unpin(engine, known)

    def _in_l1(
        self, engine: Engine, known: NativeRequest, group: wire.GroupLookup, names: list[bytes]
    ) -> list[int]:
        """The slots of what the L1 has, pinned; of a prefix up to the first that it has not."""
        space = self._core.l1.space(engine.spaces[group.group])
        ready = space.ready if space is not None else {}
        slots = [wire.MISS] * len(names)
        for at, name in enumerate(names):
            entry = ready.get(name)
            if entry is not None:
                self._core.l1.found(entry)
                slots[at] = self._pin(engine, known, entry)
            if slots[at] == wire.MISS and not group.windowed:
                break
        return slots

    @contextmanager
    def _waiting(self, client: bytes, count: int) -> Iterator[bool]:
        """Whether a lookup of so many hashes may wait for L2: they are in memory until then."""
        if self._asking[client] + count > _MAX_HASHES:
            self._core.refusals.add("native_lookup", "too_many_lookups", f"{count} hashes more")
            yield False
            return
        self._asking[client] += count
        try:
            yield True
        finally:
            self._asking[client] -= count
            if not self._asking[client]:
                del self._asking[client]

    async def _from_below(
        self, engine: Engine, known: NativeRequest, ask: wire.NativeLookup,
        hashes: list[list[bytes]], answer: list[list[int]],
    ) -> int:  # fmt: skip
        """Put into `answer` what L2 has, as far as that comes within the budget.

        How many of the first group's hits were loaded.
        """
        loads: list[tuple[list[int], int, Flow[Arrived]]] = []
        for group, names, slots in zip(ask.groups, hashes, answer, strict=True):
            space = engine.spaces[group.group]
            missing = self._missing(space, group, names, slots)
            for first, last in missing[: _MAX_LOADS - len(loads)]:
                loads.append((slots, first, self._load(engine, space, names[first:last], ask)))
        from_l2, finished, known.waiting = 0, known.finished, known.waiting + 1
        try:
            for slots, first, load in loads:
                arrived = await load
                goes_on = known.finished == finished and not engine.lost
                found = zip(arrived.entries if goes_on else (), arrived.from_l2, strict=False)
                for at, (entry, was_below) in enumerate(found, first):
                    slots[at] = self._pin(engine, known, entry)
                    if slots[at] == wire.MISS:
                        break
                    from_l2 += was_below and slots is answer[0]
                arrived.let_go()
        finally:
            known.waiting -= 1
        return from_l2

    def _missing(
        self, space: SpaceKey, group: wire.GroupLookup, names: list[bytes], slots: list[int]
    ) -> list[tuple[int, int]]:
        """The ranges of `names` that are to be loaded; marks what could be and is not."""
        missing = [at for at, slot in enumerate(slots) if slot == wire.MISS]
        if not group.windowed:
            return [(missing[0], len(names))] if missing else []
        below = [at for at in missing if self._below.may_have(space, names[at])]
        if group.load:
            return [(at, at + 1) for at in below]
        for at in below:
            slots[at] = wire.BELOW
        return []

    def _load(
        self, engine: Engine, space: SpaceKey, names: list[bytes], ask: wire.NativeLookup
    ) -> Flow[Arrived]:
        size, seconds = engine.attach.object_bytes, ask.budget_ms / 1000
        load = self._below.load(engine.client, space, size, names, seconds)
        return self._core.flows.start(load)

    def _publish(
        self, space: SpaceKey, sequence: list[bytes], items: list[tuple[bytes, Entry]]
    ) -> int:
        """One group's: what is there already gives its slot back. How many are there now."""
        core, entries = self._core, []
        for name, entry in items:
            if core.l1.knows(space, name):
                core.l1.abort(entry)
            else:
                core.l1.rename(entry, space, name)
                entries.append(entry)
        place = {name: at for at, name in enumerate(sequence)}
        behind = [name for name, _ in items if name not in place]
        if entries:
            core.publish(entries, space, [*sequence, *dict.fromkeys(behind)], NO_SPAN)
        return len(items)

    def _use(self, engine: Engine, known: NativeRequest) -> None:
        telemetry, count = self._core.telemetry, len(known.pins)
        for group, sequence in known.sequences.items():
            if engine.spaces:
                self._core.touch(engine.spaces[group], sequence)
        telemetry.l1_read_chunks.add(count)
        telemetry.num_finished_retrieves.add(1, _DEVICE)
        telemetry.transfer_bytes.add(count * engine.attach.object_bytes, "load", _DEVICE)

    def _pin(self, engine: Engine, known: NativeRequest, entry: Entry) -> int:
        """The slot of a hit, which is the request's from now on; a miss if it has its share."""
        if entry not in known.pins:
            size = entry.slot_bytes
            if known.pins and engine.pinned_bytes + size > self._core.l1.capacity // 2:
                return wire.MISS
            self._core.l1.pin(entry)
            self._core.l1.journal.reading([entry])
            known.pins[entry] = None
            engine.pinned_bytes += size
        return _slot(entry)

    def _unpin(self, engine: Engine, known: NativeRequest) -> None:
        known.finished += 1
        self._core.l1.journal.read(known.pins)
        for entry in known.pins:
            self._core.l1.unpin(entry)
            engine.pinned_bytes -= entry.slot_bytes
        known.pins.clear()

    def _share(self, engine: Engine) -> int:
        """How many bytes more it may reserve."""
        held = sum(each.reserved_bytes for each in self._engines.by_session.values())
        return write_share(self._core.l1.capacity, held, engine.reserved_bytes)

    def _record(self, engine: Engine, ask: wire.NativeLookup, hashes: list[list[bytes]]) -> None:
        """The first lookup of a request, in chunks of the server's size: a log has one size."""
        log, attach = self._core.lookup_log, engine.attach
        if log is None or not ask.groups or ask.groups[0].windowed:
            return
        each, rest = divmod(self._core.config.chunk_size, attach.chunk_tokens)
        if each and not rest:
            names = hashes[0][each - 1 :: each]
            tokens = len(hashes[0]) * attach.chunk_tokens
            log.add(Scope(attach.model, attach.ranks, ""), names, tokens)

    def _count(
        self, engine: Engine, ask: wire.NativeLookup, answer: list[list[int]], from_l2: int
    ) -> None:
        """By the first group. `from_l2`: how many of its hits were loaded."""
        telemetry, labels = self._core.telemetry, (engine.attach.model, "")
        if not ask.groups or ask.groups[0].windowed:
            return
        tokens = engine.attach.chunk_tokens
        hits = sum(slot >= 0 for slot in answer[0])
        telemetry.lookups_requests.add(1, *labels)
        telemetry.lookup_requested_tokens.add(len(answer[0]) * tokens, *labels)
        self._core.count_hits(labels, hits, from_l2, tokens)


def _slot(entry: Entry) -> int:
    return entry.offset // wire.SLOT_BYTES
