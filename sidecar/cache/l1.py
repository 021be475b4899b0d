"""L1: reserve, commit, abort, find, lease, pin, evict.

The invariants live here. An object is published last (`commit`), it leaves the index before
its bytes are freed, and its bytes are freed only when nobody pins them. All calls come from
one thread.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice

from sidecar.cache.arena import aligned
from sidecar.cache.entry import Entry, Space, State
from sidecar.cache.keys import SpaceKey
from sidecar.cache.policy import EvictionPolicy
from sidecar.cache.slots import Slots

_VICTIMS_TRIED = 16


class L1:
    """The index over an arena of `capacity` bytes, which become usable by `grow`.

    Every slot begins with `headroom` bytes (whole pages) that are not the object's, and lies in
    one of the arena's parts, which begin at `starts`.
    `on_evicted(entry, now)` is told of every object that had to go, before it goes.
    """

    def __init__(
        self,
        capacity: int,
        policy: EvictionPolicy,
        on_evicted: Callable[[Entry, float], None] = lambda entry, now: None,
        clock: Callable[[], float] = time.monotonic,
        headroom: int = 0,
        starts: Sequence[int] = (0,),
    ) -> None:
        self.capacity = capacity
        self.usable_bytes = 0
        self.objects = 0
        self.writing = 0
        self.held = 0
        self._slots = Slots(starts)
        self._policy = policy
        self._spaces: dict[SpaceKey, Space] = {}
        self._on_evicted = on_evicted
        self._clock = clock
        self._headroom = headroom

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
        taken = self._headroom + aligned(size)
        start = self._allocate(taken, near)
        if start is None:
            return None
        space = self._spaces.get(key)
        if space is None:
            space = self._spaces[key] = Space(key)
        slot = range(start, start + taken)
        entry = Entry(space, hash, slot, start + self._headroom, size, missing)
        space.writing[hash] = entry
        self._slots.occupy(entry)
        self.writing += 1
        return entry

    def commit(self, entry: Entry) -> None:
        """All bytes of `entry` are in place: publish it."""
        del entry.space.writing[entry.hash]
        entry.space.ready[entry.hash] = entry
        entry.state = State.READY
        entry.stored_at = entry.used_at = self._clock()
        self.writing -= 1
        self.objects += 1
        if not (entry.leases or entry.pins):
            self._policy.add(entry)
        entry.settle()

    def abort(self, entry: Entry) -> None:
        """`entry` will not be completed and nobody writes to it any more: free its slot."""
        self.withdraw(entry)
        self._slots.free(entry)

    def withdraw(self, entry: Entry) -> None:
        """`entry` will not be completed, but somebody may still write to its slot.

        The slot stays taken until `release_withdrawn`.
        """
        del entry.space.writing[entry.hash]
        entry.state = State.GONE
        self.writing -= 1
        self._forget_if_empty(entry.space)
        entry.settle()

    def release_withdrawn(self, entry: Entry) -> None:
        """Whoever could write to the withdrawn `entry` is gone."""
        self._slots.free(entry)

    def lease(self, entry: Entry) -> None:
        """Keep `entry` readable for somebody who was promised it.

        It may be on its way still; if it is aborted, the lease holds nothing.
        """
        self._hold(entry)
        entry.leases += 1
        if entry.state is State.READY:
            entry.cold = False  # somebody came back for it

    def unlease(self, entry: Entry) -> None:
        entry.leases -= 1
        self._let_go(entry)

    def pin(self, entry: Entry) -> None:
        """A copy of `entry` is under way."""
        self._hold(entry)
        entry.pins += 1

    def unpin(self, entry: Entry, used: bool = True) -> None:
        """The copy has ended. If a worker `used` it, that counts as its last use."""
        entry.pins -= 1
        if used:
            entry.used_at = self._clock()
        if entry.state is State.GONE and not entry.pins:
            self._slots.free(entry)
        self._let_go(entry)

    def evict(self, limit: int, down_to_bytes: int) -> int:
        """Evict at most `limit` objects until `down_to_bytes` are used; how many went."""
        evicted = 0
        while evicted < limit and self.used_bytes > down_to_bytes:
            victim = next(iter(self._policy.candidates()), None)
            if victim is None:
                break
            self._evict(victim)
            evicted += 1
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
        """Drop every object that nobody holds; with `force`, held ones too. How many went.

        Bytes that a copy is reading are freed when it ends, forced or not.
        """
        dropped = []
        for space in self.spaces():
            ready = space.ready
            kept = {} if force else {h: e for h, e in ready.items() if e.leases or e.pins}
            dropped += [entry for h, entry in ready.items() if h not in kept]
            space.ready = kept
            self._forget_if_empty(space)
        for entry in dropped:
            entry.state = State.GONE
        self.objects -= len(dropped)
        self._policy.clear()
        self._slots.vacate([entry for entry in dropped if not entry.pins])
        return len(dropped)

    def _allocate(self, size: int, near: int | None) -> int | None:
        if size > self.usable_bytes:
            return None
        offset = self._slots.take(size, near)
        if offset is None and self._make_room(size):
            offset = self._slots.take(size)
        return offset

    def _make_room(self, size: int) -> bool:
        """Evict what lies together in `size` bytes, around one of the oldest objects.

        Where all objects have one size that is the oldest alone. Where sizes are mixed, going
        by age only would empty half the cache before two neighbours happen to be free.
        """
        for victim in islice(self._policy.candidates(), _VICTIMS_TRIED):
            neighbours = self._slots.evictable_around(victim, size)
            if neighbours:
                for entry in neighbours:
                    self._evict(entry)
                return True
        return False

    def _evict(self, entry: Entry) -> None:
        self._on_evicted(entry, self._clock())
        self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        del entry.space.ready[entry.hash]
        self.objects -= 1
        entry.state = State.GONE
        self._forget_if_empty(entry.space)
        if not (entry.leases or entry.pins):
            self._policy.remove(entry)
        if not entry.pins:
            self._slots.free(entry)

    def _hold(self, entry: Entry) -> None:
        if not (entry.leases or entry.pins):
            self.held += 1
            if entry.state is State.READY:
                self._policy.remove(entry)

    def _let_go(self, entry: Entry) -> None:
        if not (entry.leases or entry.pins):
            self.held -= 1
            if entry.state is State.READY:
                self._policy.add(entry)

    def _forget_if_empty(self, space: Space) -> None:
        if not (space.ready or space.writing):
            del self._spaces[space.key]
