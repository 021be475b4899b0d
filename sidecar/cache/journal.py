"""Writes down what lies where in the arena, as it changes, for the server's successor.

What is written survives the process, however it ends. So the order counts: a slot is written down
as taken before anybody may write to it, and as no object's before it is free.
"""

import logging
import mmap
import os
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any

import msgspec

from sidecar.cache.entry import Entry, State
from sidecar.cache.keys import SpaceKey
from sidecar.cache.records import (
    AGE_AT,
    AGE_BYTES,
    HEAD_BYTES,
    MAX_GROUPS,
    MAX_SIZE,
    MAX_SPACES,
    NAMELESS,
    NO_DIGEST,
    PAGE_BYTES,
    READ_AT,
    READY,
    RECORD_BYTES,
    SPACE_BYTES,
    TABLE_AT,
    TAKEN,
    Head,
    Record,
    seed_of,
    table_bytes,
    write_age,
    write_head,
    write_record,
    write_space,
)

log = logging.getLogger(__name__)
_MAX_UNDIGESTED = 1 << 20  # what was written before those is lost if the server is killed
_NOTHING = bytes(RECORD_BYTES)
_NO_HASH = bytes(32)


class Journal:
    """The index in the file `fd`, which becomes this object's. Loop thread only.

    No call raises: where the file cannot be written there is no index, and no successor.
    """

    def __init__(self, fd: int, head: Head, spaces: dict[SpaceKey, int], age: int = 0) -> None:
        """`spaces` and `age` are what a predecessor has left: see `recovery`."""
        self._fd = fd
        self._head = head
        self._spaces = {key: (number, seed_of(key)) for key, number in spaces.items()}
        used = set(spaces.values())
        self._free = [number for number in reversed(range(MAX_SPACES)) if number not in used]
        self._ages = count(age)
        self._readers: Counter[Entry] = Counter()
        self.undigested: deque[Entry] = deque(maxlen=_MAX_UNDIGESTED)  # complete, the oldest first
        self.failed = ""
        self._write_head()

    def taken(self, entry: Entry) -> None:
        """Somebody may write to the slot of `entry` from now on, and it is nobody's object."""
        if entry.size > MAX_SIZE:
            self._fail("an object of 4 GiB")
        self._write_nameless(entry, TAKEN)

    def ready(self, entries: Sequence[Entry]) -> None:
        """These are complete, and used now."""
        age = next(self._ages)
        for entry in entries:
            self._write_ready(entry, NO_DIGEST, age)

    def proven(self, entry: Entry, digest: bytes) -> None:
        """The bytes of `entry`, which is complete, have this digest."""
        self._write_ready(entry, digest, next(self._ages))
        if entry in self._readers:
            self._write(self._at(entry) + READ_AT, b"\1")

    def erase(self, entry: Entry) -> None:
        """Nobody uses the slot of `entry` any more."""
        self._write(self._at(entry), _NOTHING)

    def reading(self, entries: Iterable[Entry]) -> None:
        """A worker that has the arena open reads these."""
        for entry in entries:
            self._readers[entry] += 1
            if self._readers[entry] == 1:
                self._write(self._at(entry) + READ_AT, b"\1")

    def read(self, entries: Iterable[Entry]) -> None:
        """It has read them."""
        for entry in entries:
            self._readers[entry] -= 1
            if not self._readers[entry]:
                del self._readers[entry]
                self._write(self._at(entry) + READ_AT, b"\0")

    def shared(self) -> None:
        """Others get the arena open by its own name."""
        if not self._head.shared:
            self._write_head(shared=True)

    def epochs(self, tags: list[str]) -> None:
        """All that is here belongs to these epochs of the L2, and to none before them."""
        if tags != self._head.epochs:
            self._write_head(epochs=tags)

    def forget(self, space: SpaceKey) -> None:
        """Nothing is in `space` any more."""
        known = self._spaces.pop(space, None)
        if known is not None:
            self._write(HEAD_BYTES + known[0] * SPACE_BYTES, bytes(SPACE_BYTES))
            self._free.append(known[0])

    def rewrite(self, entries: Iterable[Entry]) -> None:
        """There are no objects any more; what occupies bytes all the same is of `entries`."""
        self._write_head(usable=False)
        try:
            os.ftruncate(self._fd, TABLE_AT)
            os.ftruncate(self._fd, TABLE_AT + table_bytes(self._head.arena_bytes))
        except OSError as error:
            self._fail(str(error))
        for entry in entries:
            if entry.state is not State.GONE:
                self.taken(entry)
        if not self.failed:
            self._write_head(usable=True)

    def close(self, order: Iterable[Entry]) -> None:
        """Nothing changes any more. `order` is what is complete, in the order of its eviction."""
        if self.failed:
            return
        try:
            file = mmap.mmap(self._fd, TABLE_AT + table_bytes(self._head.arena_bytes))
        except OSError as error:
            self._fail(str(error))
            return
        with file:
            for age, entry in enumerate(order):
                at = self._at(entry) + AGE_AT
                file[at : at + AGE_BYTES] = write_age(age)
        self._write_head(clean=True)

    def _write_ready(self, entry: Entry, digest: bytes, age: int) -> None:
        known = self._spaces.get(entry.space.key) or self._number(entry.space.key)
        if known is None or any(group >= MAX_GROUPS for group in entry.missing):
            self._write_nameless(entry, NAMELESS)
            return
        groups = sum(1 << group for group in entry.missing)
        if digest == NO_DIGEST:
            self.undigested.append(entry)
        number, seed = known
        page = entry.start // PAGE_BYTES
        record = Record(page, READY, groups, number, entry.size, entry.hash, digest, age)
        self._write_record(entry, record, seed)

    def _write_nameless(self, entry: Entry, kind: int) -> None:
        page = entry.start // PAGE_BYTES
        self._write_record(entry, Record(page, kind, 0, 0, entry.size, _NO_HASH, NO_DIGEST, 0), 0)

    def _number(self, key: SpaceKey) -> tuple[int, int] | None:
        """Of a space that is new here; None if it cannot be kept."""
        data = write_space(key)
        if data is None or not self._free:
            return None
        known = self._spaces[key] = self._free.pop(), seed_of(key)
        self._write(HEAD_BYTES + known[0] * SPACE_BYTES, data)
        return known

    def _write_record(self, entry: Entry, record: Record, seed: int) -> None:
        if not self.failed:  # as it has for what no record can tell of
            self._write(self._at(entry), write_record(record, seed))

    def _at(self, entry: Entry) -> int:
        return TABLE_AT + entry.start // PAGE_BYTES * RECORD_BYTES

    def _write_head(self, **changes: Any) -> None:
        head = msgspec.structs.replace(self._head, **changes)
        data = write_head(head)
        if len(data) > HEAD_BYTES:
            self._fail("there are too many L2 adapters")
            return
        self._head = head
        self._write(0, data)

    def _write(self, at: int, data: bytes) -> None:
        if self.failed:
            return
        try:
            os.pwrite(self._fd, data, at)
        except OSError as error:
            self._fail(str(error))

    def _fail(self, reason: str) -> None:
        """What cannot be written down cannot be trusted: there is no index from now on."""
        if self.failed:
            return
        self.failed = reason
        head = msgspec.structs.replace(self._head, clean=False, usable=False)
        with suppress(OSError):
            os.pwrite(self._fd, write_head(head), 0)
        log.error("the L1 will not outlive this server, its index cannot be written: %s", reason)


class Unkept:
    """In the place of a journal where nothing is to outlive the server."""

    undigested: tuple[Entry, ...] = ()
    failed = ""

    def taken(self, entry: Entry) -> None: ...
    def ready(self, entries: Sequence[Entry]) -> None: ...
    def erase(self, entry: Entry) -> None: ...
    def reading(self, entries: Iterable[Entry]) -> None: ...
    def read(self, entries: Iterable[Entry]) -> None: ...
    def shared(self) -> None: ...
    def epochs(self, tags: list[str]) -> None: ...
    def forget(self, space: SpaceKey) -> None: ...
    def rewrite(self, entries: Iterable[Entry]) -> None: ...
    def close(self, order: Iterable[Entry]) -> None: ...


UNKEPT = Unkept()
