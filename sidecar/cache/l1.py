"""L1: reserve, commit, abort, find, lease, pin, touch, evict.

The invariants live here, and in the table of an entry's states: what would break one raises
IllegalStep. An object is published last (`publish`), it leaves the index before
its bytes are freed, and its bytes are freed only when nobody pins them. All calls come from
one thread, and none calls anybody: who waits for an object goes on after the call.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from sidecar.cache.changes import Changes, Medium
from sidecar.cache.entry import Entry, Heat, IllegalStep, Sizes, Space, State, shared, sizes_of
from sidecar.cache.holds import Holds
from sidecar.cache.journal import UNKEPT, Journal, Unkept
from sidecar.cache.keys import SpaceKey
from sidecar.cache.policies.isolated import Isolated
from sidecar.cache.policy import EvictionPolicy
from sidecar.cache.protections import Protections
from sidecar.cache.quotas import Quotas
from sidecar.cache.shards import Shards
from sidecar.cache.slots import Slots

_VICTIMS_TRIED = 16


class Evicted(NamedTuple):
    """How long an object was there, and unused, when it was evicted; in seconds."""

    lifetime: float
    idle: float


class L1(Holds):
    """The index over an arena of `capacity` bytes, which become usable by `grow`.

    Every slot begins with `headroom` bytes (whole pages) that are not the object's, and lies in
    one of the arena's parts, which begin at `starts`.
    """

    def __init__(
        self,
        capacity: int,
        policy: EvictionPolicy,
        clock: Callable[[], float] = time.monotonic,
        headroom: int = 0,
        starts: Sequence[int] = (0,),
        journal: Journal | Unkept = UNKEPT,
        protect_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        self.capacity = capacity
        self.usable_bytes = 0
        self.objects = 0
        self.writing = 0
        self.quotas = policy.quotas if isinstance(policy, Isolated) else Quotas(capacity)
        self.changes = Changes()
        self.protections = Protections(self, int(protect_ratio * capacity))
        self._slots = Slots(starts, self.quotas)
        self._policy = policy
        self._spaces: dict[SpaceKey, Space] = {}
        self._promised: set[Entry] = set()  # cleared, and leased
        self._evicted: list[Evicted] = []
        self._clock = clock
        self._headroom = headroom
        self.journal = journal
        self.unproven: OrderedDict[Entry, None] = OrderedDict()  # objects, the oldest first

    @property
    def isolates(self) -> bool:
        """Whether quotas are kept here."""
        return isinstance(self._policy, Isolated)

    @property
    def used_bytes(self) -> int:
        """Bytes of all slots, those of withdrawn entries among them."""
        return self._slots.used_bytes

    def grow(self, offset: int, size: int) -> None:
        """`[offset, offset + size)` of the arena is resident now."""
        self.usable_bytes += size
        self._slots.grow(offset, size)

    def space(self, key: SpaceKey) -> Space | None:
        """The space if anything is in it; for readers."""
        return self._spaces.get(key)

    def knows(self, key: SpaceKey, hash: bytes) -> bool:
        """Whether the object is there or being written."""
        space = self._spaces.get(key)
        return space is not None and (hash in space.ready or hash in space.writing)

    def reserve(
        self,
        key: SpaceKey,
        hash: bytes,
        size: int,
        missing: frozenset[int] = frozenset(),
        near: int | None = None,
    ) -> Entry | None:
        """A slot of `size` bytes to write an object into, evicting what must go.

        It is in the part `near` of the arena if there is room, before anything is evicted.
        The object must be neither there nor under way. None if there is no room even so.
        """
        sizes = sizes_of(size, self._headroom)
        if not self._keep_quota(key.cache_salt, sizes.slot, _VICTIMS_TRIED):
            return None
        start = self._allocate(sizes.slot, near, key.cache_salt)
        if start is None:
            return None
        entry = Entry(self._space_for(key), hash, start, sizes, shared(missing))
        entry.space.writing[hash] = entry
        self._slots.occupy(entry)
        self.journal.taken(entry)
        self.writing += 1
        return entry

    def rename(self, entry: Entry, key: SpaceKey, hash: bytes) -> None:
        """`entry` is being written, and it is known only now as what.

        The object must be neither there nor under way, and of the salt that the slot counts for.
        """
        if entry.state is not State.WRITING or self.knows(key, hash):
            raise IllegalStep(f"rename: chunk {entry.hash.hex()} is {entry.state}")
        if key.cache_salt != entry.space.key.cache_salt:
            raise IllegalStep(f"rename: chunk {entry.hash.hex()} is of another salt")
        del entry.space.writing[entry.hash]
        self._forget_if_empty(entry.space)
        entry.space, entry.hash = self._space_for(key), hash
        entry.space.writing[hash] = entry

    def commit(self, entry: Entry) -> None:
        """All bytes of `entry` are in place: publish it. It is the last to go for now."""
        self.publish(entry.space.key, [entry], [entry.hash])

    def publish(self, key: SpaceKey, entries: Sequence[Entry], hashes: Sequence[bytes]) -> None:
        """All bytes of `entries` are in place; a worker has stored the sequence `hashes`."""
        for entry in entries:
            if entry.space.writing.get(entry.hash) is not entry or entry.space.key != key:
                raise IllegalStep(f"publish: chunk {entry.hash.hex()} is {entry.state}")
        now = self._clock()
        for entry in entries:
            entry.step("publish")
            del entry.space.writing[entry.hash]
            entry.space.ready[entry.hash] = entry
            entry.stored_at = now
        self.journal.ready(entries)
        self.writing -= len(entries)
        self.objects += len(entries)
        self.touch(key, hashes)
        for entry in entries:
            if entry.place < 0:
                raise IllegalStep(f"chunk {entry.hash.hex()} is not of the sequence it came with")
            entry.settle()
        if self.changes.on:
            self.changes.stored(Medium.CPU, key, [entry.hash for entry in entries])

    def touch(self, key: SpaceKey, hashes: Sequence[bytes]) -> None:
        """A worker has used the sequence whose first chunks are `hashes`.

        A chunk is worth nothing without those before it. So all of the sequence that is here
        counts as used, also where a worker took only a part of it, and its tail goes first.
        """
        space = self._spaces.get(key)
        if space is None:
            return
        now, policy, heat = self._clock(), self._policy, Heat.COLD
        for hash in reversed(hashes):
            entry = space.ready.get(hash)
            if entry is None:
                continue
            is_candidate = not (entry.leases or entry.pins)
            if is_candidate and entry.place >= 0:
                policy.remove(entry)
            if entry.place < 0 and entry.heat is Heat.WARM and policy.recalls(entry):
                entry.heat = Heat.HOT
            heat = entry.heat = max(heat, entry.heat)
            entry.used_at = now
            entry.place = policy.next_place(entry)
            if is_candidate:
                policy.add(entry)

    def abort(self, entry: Entry) -> None:
        """`entry` will not be completed and nobody writes to it any more: free its slot."""
        entry.step("abort")
        self._unreserve(entry)
        self._free(entry)

    def withdraw(self, entry: Entry) -> None:
        """`entry` will not be completed, but somebody may still write to its slot.

        The slot stays taken until `release_withdrawn`.
        """
        entry.step("withdraw")
        self._unreserve(entry)

    def release_withdrawn(self, entry: Entry) -> None:
        """Whoever could write to the withdrawn `entry` is gone."""
        entry.step("release")
        self._free(entry)

    def lease(self, entry: Entry) -> None:
        super().lease(entry)
        if entry.state is State.READY:
            self.found(entry)

    def found(self, entry: Entry) -> None:
        """A lookup has found `entry`, which counts when it is used."""
        entry.heat = Heat.HOT

    def evict(self, limit: int, down_to_bytes: int) -> int:
        """Evict at most `limit` objects until `down_to_bytes` are used; how many went.

        Where one has to go, what was inherited and nobody has used since goes first.
        """
        evicted = 0
        while evicted < limit and self.used_bytes > down_to_bytes:
            victim = next(iter(self._policy.candidates()), None)
            if victim is None:
                break
            if self.unproven:
                self.disown(next(iter(self.unproven)))
            else:
                self._evict(victim)
            evicted += 1
        return evicted

    def evict_over_quota(self, limit: int) -> int:
        """Evict at most `limit` objects of salts that have more than their quota; how many went."""
        left, policy = limit, self._policy
        if isinstance(policy, Isolated):
            for salt in self.quotas.exceeded():
                while left and not self.quotas.has_room(salt, 0) and self._evict_of(policy, salt):
                    left -= 1
        return limit - left

    def take_evicted(self) -> list[Evicted]:
        """What had to go since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted

    def spaces(self) -> list[Space]:
        """All spaces that something is in."""
        return list(self._spaces.values())

    def discard(self, entry: Entry, force: bool = False) -> bool:
        """Drop a ready object; if it is held, only with `force`. Whether it went."""
        if not force and (entry.leases or entry.pins):
            return False
        self._drop(entry)
        return True

    def clear(self, force: bool) -> int:
        """Nothing that is there now is found any more; how many objects that is.

        What lookups were promised stays readable for them until their leases end; not with
        `force`. Bytes that a copy is reading, to wherever, are freed when it ends.
        """
        cleared, vacated = self.objects, []
        for space in self.spaces():
            for entry in space.ready.all_values():
                if entry.leases and not force:
                    entry.step("clear leased")
                    self._promised.add(entry)
                elif entry.pins:
                    entry.state = State.DROPPED
                else:
                    entry.state = State.GONE
                    vacated.append(entry)
            if self.changes.on:
                self.changes.removed(Medium.CPU, space.key, list(space.ready))
            space.ready = Shards()
            self._forget_if_empty(space)
        for entry in self._promised if force else ():
            entry.step("clear by force, pinned" if entry.pins else "clear by force")
            if not entry.pins:
                vacated.append(entry)
        if force:
            self._promised.clear()
        self.objects = 0
        self._policy.clear()
        self._slots.vacate(vacated)
        for entry in list(self.unproven):
            self.disown(entry)
        self.journal.rewrite(self._slots)
        return cleared

    def inherit(
        self, key: SpaceKey, hash: bytes, start: int, sizes: Sizes, missing: frozenset[int]
    ) -> Entry:
        """What was in a slot before this server was started. No such byte may be usable yet."""
        space = self._space_for(key)
        entry = Entry(space, hash, start, sizes, shared(missing), state=State.INHERITED)
        space.inherited += 1
        self._slots.occupy(entry)
        return entry

    def grow_around(self, pieces: Sequence[range]) -> None:
        """These of the arena are resident, and what was inherited lies in them."""
        self.usable_bytes += sum(map(len, pieces))
        self._slots.grow_around(pieces)

    def prove(self, entry: Entry) -> bool:
        """The inherited `entry` is whole: publish it. False if somebody has brought it again."""
        key = entry.space.key
        if self.knows(key, entry.hash):
            self.disown(entry)
            return False
        entry.step("prove")
        self.unproven.pop(entry, None)
        entry.space.inherited -= 1
        entry.space.ready[entry.hash] = entry
        entry.stored_at = self._clock()
        self.objects += 1
        self.touch(key, [entry.hash])
        if self.changes.on:
            self.changes.stored(Medium.CPU, key, [entry.hash])
        return True

    def disown(self, entry: Entry) -> None:
        """The inherited `entry` is nobody's object, and nobody can write to its slot."""
        entry.step("disown")
        self.unproven.pop(entry, None)
        self._free(entry)
        # Not before: a space that is forgotten is one that no record names.
        entry.space.inherited -= 1
        self._forget_if_empty(entry.space)

    def leave(self) -> None:
        """Nothing changes any more: what is complete is a successor's to trust."""
        for entry in list(self.unproven):
            self.disown(entry)
        self.journal.close(self._policy.candidates())

    def _keep_quota(self, salt: str, size: int, limit: int) -> bool:
        """Whether `size` more bytes are within the salt's quota, at the expense of its own."""
        policy = self._policy
        if not isinstance(policy, Isolated):
            return True
        while not self.quotas.has_room(salt, size):
            if size > self.quotas.limit(salt) or not limit or not self._evict_of(policy, salt):
                return False
            limit -= 1
        return True

    def _evict_of(self, policy: Isolated, salt: str) -> bool:
        victim = next(policy.candidates_of(salt), None)
        if victim is not None:
            self._evict(victim)
        return victim is not None

    def _allocate(self, size: int, near: int | None, salt: str) -> int | None:
        if size > self.usable_bytes:
            return None
        offset = self._slots.take(size, near)
        while offset is None and self.unproven:
            self.disown(next(iter(self.unproven)))
            offset = self._slots.take(size, near)
        if offset is None and self._make_room(size, salt):
            offset = self._slots.take(size)
        return offset

    def _make_room(self, size: int, salt: str) -> bool:
        """Evict what lies together in `size` bytes, around one of the oldest objects.

        Where all objects have one size that is the oldest alone. Where sizes are mixed, going
        by age only would empty half the cache before two neighbours happen to be free. False where
        none of those tried has enough around it that may go.
        """
        policy = self._policy
        if isinstance(policy, Isolated):
            candidates: Iterable[Entry] = policy.candidates_for(salt, size)
        else:
            candidates = policy.candidates()
        for victim in islice(candidates, _VICTIMS_TRIED):
            may_take = policy.taking_for(salt, size) if isinstance(policy, Isolated) else _any
            neighbours = self._slots.evictable_around(victim, size, may_take)
            if neighbours:
                for entry in neighbours:
                    self._evict(entry)
                return True
        return False

    def _evict(self, entry: Entry) -> None:
        now = self._clock()
        self._evicted.append(Evicted(now - entry.stored_at, now - entry.used_at))
        self._policy.evicted(entry)
        self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        entry.step("drop pinned" if entry.pins else "drop")
        if entry.pins:
            self.journal.taken(entry)
        else:
            self.journal.erase(entry)
        del entry.space.ready[entry.hash]
        if self.changes.on:
            self.changes.removed(Medium.CPU, entry.space.key, [entry.hash])
        self.objects -= 1
        self._forget_if_empty(entry.space)
        if not (entry.leases or entry.pins):
            self._policy.remove(entry)
        if not entry.pins:
            self._slots.free(entry)

    def _held_now(self, entry: Entry) -> None:
        self._policy.remove(entry)

    def _unheld_now(self, entry: Entry) -> None:
        self._policy.add(entry)

    def _free(self, entry: Entry) -> None:
        self._promised.discard(entry)
        self.journal.erase(entry)
        self._slots.free(entry)

    def _unreserve(self, entry: Entry) -> None:
        del entry.space.writing[entry.hash]
        self.writing -= 1
        self._forget_if_empty(entry.space)
        entry.settle()

    def _space_for(self, key: SpaceKey) -> Space:
        space = self._spaces.get(key)
        if space is None:
            space = self._spaces[key] = Space(self, key)
        return space

    def _forget_if_empty(self, space: Space) -> None:
        if space.is_empty:
            del self._spaces[space.key]
            self.journal.forget(space.key)


def _any(entry: Entry) -> bool:
    """Where nobody has a share of its own."""
    return True
