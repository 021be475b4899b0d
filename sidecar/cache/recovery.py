"""From what a predecessor has left in shared memory: its index, checked, and an L1 filled by it."""

import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter
from typing import NamedTuple

import msgspec
import numpy as np

from sidecar.cache.arena import PIECE_BYTES
from sidecar.cache.entry import Entry, Sizes, sizes_of
from sidecar.cache.journal import Journal
from sidecar.cache.keys import NOBODY, SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.records import (
    HEAD_BYTES,
    MAX_GROUPS,
    NO_DIGEST,
    PAGE_BYTES,
    READY,
    RECORD_BYTES,
    SPACE_BYTES,
    TABLE_AT,
    TAKEN,
    Head,
    Unusable,
    is_whole,
    read_head,
    read_record,
    read_space,
    seed_of,
    table_bytes,
)
from sidecar.cache.segment import Segment


class Left(NamedTuple):
    """A slot: an object of `key`, or with None what is none. `age` orders objects.

    `held`: a worker that had the arena open was reading or writing it. `digest` is empty if none
    is known.
    """

    start: int
    sizes: Sizes
    key: SpaceKey | None
    hash: bytes
    missing: frozenset[int]
    digest: bytes
    age: int
    held: bool


@dataclass
class Legacy:
    """All of it, slots by place. `pieces` of the arena are resident.

    `trusted`: the predecessor has stopped in order, and what is complete is whole. `shared`:
    others may have the arena open by its own name. `epochs` are those of the L2 to which the
    objects belong.
    """

    trusted: bool
    shared: bool
    epochs: list[str]
    slots: list[Left]
    spaces: dict[SpaceKey, int]
    pieces: list[range]

    def without_objects(self) -> "Legacy":
        """The slots that others may still touch, and that is all."""
        slots = [slot._replace(key=None) for slot in self.slots if slot.held]
        return replace(self, slots=slots, epochs=[])

    def key_of(self, left: Left, is_alone: bool) -> SpaceKey:
        """Of the object in a slot; NOBODY's, if there is none that may be served, or prove itself.

        `is_alone`: nobody else has the arena open.
        """
        may_prove_itself = left.digest and (is_alone or not left.held)
        if left.key is None or not (self.trusted or may_prove_itself):
            return NOBODY
        return left.key


log = logging.getLogger(__name__)


@dataclass
class Restored:
    """What has become of a legacy in an L1.

    `unproven` are objects and their digests, the last used last. Until those who had the
    arena open are gone nobody may reuse the slots of `suspects`, nor evict `being_read`, which are
    pinned.
    """

    unproven: list[tuple[Entry, bytes]] = field(default_factory=list)
    suspects: list[Entry] = field(default_factory=list)
    being_read: list[Entry] = field(default_factory=list)


def inherited(segment: Segment, ours: Head) -> Legacy | None:
    """What lies in an inherited segment. If nothing can be done with it, it is made anew."""
    if not segment.is_inherited:
        return None
    try:
        index = os.open(segment.index_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return read_legacy(index, segment.fd, ours)
        finally:
            os.close(index)
    except (Unusable, OSError) as why:
        log.warning("the L1 starts empty, the earlier one cannot be used: %s", why)
        segment.renew()
        return None


def open_journal(segment: Segment, ours: Head, legacy: Legacy | None) -> Journal:
    """That of a server which has the segment from now on. Raises OSError."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    if legacy is None:
        index = os.open(segment.index_path, flags | os.O_CREAT | os.O_EXCL, 0o600)
        os.ftruncate(index, TABLE_AT + table_bytes(ours.arena_bytes))
        return Journal(index, ours, {})
    index = os.open(segment.index_path, flags)
    age = 1 + max((slot.age for slot in legacy.slots), default=0)
    ours = msgspec.structs.replace(ours, shared=legacy.shared, epochs=legacy.epochs)
    return Journal(index, ours, legacy.spaces, age)


def restore(l1: L1, journal: Journal, legacy: Legacy, is_alone: bool) -> Restored:
    """Fill an empty L1, which keeps `journal` from now on; `is_alone`: nobody else has it open."""
    restored = Restored()
    l1.journal = journal
    entries = [
        l1.inherit(
            legacy.key_of(left, is_alone), left.hash, left.start, left.sizes, left.missing
        )
        for left in legacy.slots
    ]  # fmt: skip
    l1.grow_around(legacy.pieces)
    by_age = sorted(zip(entries, legacy.slots, strict=True), key=lambda pair: pair[1].age)
    for entry, left in by_age:
        in_use = left.held and not is_alone
        if entry.space.key is NOBODY:
            _give_up(l1, restored, entry, in_use)
        elif legacy.trusted:
            if not left.digest:
                journal.undigested.append(entry)
            _trust(l1, restored, entry, in_use)
        else:
            l1.unproven[entry] = None
            restored.unproven.append((entry, left.digest))
    for key in legacy.spaces:
        if l1.space(key) is None:
            journal.forget(key)  # not before: no record names it any more
    return restored


def _give_up(l1: L1, restored: Restored, entry: Entry, in_use: bool) -> None:
    if in_use:
        l1.journal.taken(entry)  # nor is it an object to the next server
        restored.suspects.append(entry)
    else:
        l1.disown(entry)


def _trust(l1: L1, restored: Restored, entry: Entry, in_use: bool) -> None:
    l1.prove(entry)
    if in_use:
        l1.pin(entry)
        l1.journal.reading([entry])
        restored.being_read.append(entry)


def read_legacy(index: int, arena: int, ours: Head) -> Legacy:
    """What lies in the open files `index` and `arena`.

    Raises Unusable unless a server whose head is `ours` can go on with it.
    """
    try:
        head = read_head(os.pread(index, HEAD_BYTES, 0), ours)
        if os.fstat(index).st_size != TABLE_AT + table_bytes(ours.arena_bytes):
            raise Unusable("its index has another size")
        numbers = {
            number: read_space(data)
            for number, data in _blocks(index, HEAD_BYTES, TABLE_AT, SPACE_BYTES)
            if any(data)
        }
        if len(set(numbers.values())) < len(numbers):
            raise Unusable("two spaces of its index are one")
        slots = _slots(index, ours, numbers)
        pieces = resident(arena, ours.arena_bytes)
    except OSError as error:
        raise Unusable(f"it cannot be read: {error.strerror}") from None
    _check_places(slots, pieces, ours)
    spaces = {key: number for number, key in numbers.items()}
    slots = _without_twins(slots, head.clean)
    return Legacy(head.clean, head.shared, head.epochs, slots, spaces, pieces)


def resident(arena: int, size: int) -> list[range]:
    """The pieces of which no page is missing."""
    whole: list[range] = []
    at = 0
    while at < size:
        try:
            data = os.lseek(arena, at, os.SEEK_DATA)
        except OSError:
            break  # a hole to the end
        end = os.lseek(arena, data, os.SEEK_HOLE)
        first = -(-data // PIECE_BYTES) * PIECE_BYTES
        pieces = [range(p, min(p + PIECE_BYTES, size)) for p in range(first, end, PIECE_BYTES)]
        whole += [piece for piece in pieces if piece.stop <= end]
        at = end
    return whole


def _slots(index: int, ours: Head, numbers: dict[int, SpaceKey]) -> list[Left]:
    """In the order of their places. Raises Unusable."""
    seeds = {number: seed_of(key) for number, key in numbers.items()}
    found = []
    end = TABLE_AT + table_bytes(ours.arena_bytes)
    for page, data in _blocks(index, TABLE_AT, end, RECORD_BYTES):
        record, check, fixed = read_record(data, page)
        is_object = record.kind == READY
        seed = seeds.get(record.space, 0) if is_object else 0
        known = not is_object or record.space in numbers
        if not (known and is_whole(record, check, fixed, seed)):
            raise Unusable("a record of its index is damaged")
        missing = _groups(record.missing)
        digest = b"" if record.digest == NO_DIGEST else record.digest
        key = numbers[record.space] if is_object else None
        start, sizes = page * PAGE_BYTES, sizes_of(record.size, ours.headroom)
        held = record.read or record.kind == TAKEN
        found.append(Left(start, sizes, key, record.hash, missing, digest, record.age, held))
    return found


@lru_cache(maxsize=4096)
def _groups(bits: int) -> frozenset[int]:
    return frozenset(group for group in range(MAX_GROUPS) if bits >> group & 1)


def _check_places(slots: Sequence[Left], pieces: Sequence[range], ours: Head) -> None:
    """Every slot lies in one part, in memory that is there, and no two in one place."""
    there = {piece.start for piece in pieces}
    for slot in slots:
        end = slot.start + slot.sizes.slot
        part = bisect_right(ours.parts, slot.start)
        part_end = ours.parts[part] if part < len(ours.parts) else ours.arena_bytes
        first = slot.start - slot.start % PIECE_BYTES
        if end > part_end or not there.issuperset(range(first, end, PIECE_BYTES)):
            raise Unusable("a slot of its index is outside of its memory")
    if any(one.start + one.sizes.slot > next.start for one, next in pairwise(slots)):
        raise Unusable("two slots of its index overlap")


def _without_twins(slots: list[Left], clean: bool) -> list[Left]:
    """An object of which there are two is the one that was stored last.

    A killed server may not have got to what it had inherited of an object that was stored again.
    Raises Unusable for two after a clean stop: what is not proven is given up by it.
    """
    last: dict[tuple[SpaceKey, bytes], Left] = {}
    twins = set()
    for slot in slots:
        if slot.key is None:
            continue
        other = last.setdefault((slot.key, slot.hash), slot)
        if other is slot:
            continue
        if clean or other.age == slot.age:
            raise Unusable("its index has an object twice")
        before, last[slot.key, slot.hash] = sorted((other, slot), key=attrgetter("age"))
        twins.add(before.start)
    return [slot._replace(key=None) if slot.start in twins else slot for slot in slots]


def _blocks(fd: int, start: int, end: int, size: int) -> Iterator[tuple[int, bytes]]:
    """The blocks of `size` bytes between `start` and `end` that are not zeros, by number."""
    at = start
    while at < end:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return  # a hole to the end
        stop = min(os.lseek(fd, at, os.SEEK_HOLE), end)
        while at < stop:
            data = os.pread(fd, min(stop - at, 1 << 20), at)
            if len(data) % size or not data:
                raise Unusable("its index is truncated")
            rows = np.frombuffer(data, np.uint8).reshape(-1, size)
            for row in np.flatnonzero(rows.any(axis=1)).tolist():
                yield (at - start) // size + row, data[row * size : (row + 1) * size]
            at += len(data)
