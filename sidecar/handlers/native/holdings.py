"""Where an engine's objects are, for its KV events: each engine reads on at its own pace.

What is told is not what has happened but where an object is now. So whatever is told twice, or was
missed and is told anew, leads to the same.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from sidecar.cache.changes import Changes
from sidecar.cache.keys import SpaceKey
from sidecar.handlers.core import Core
from sidecar.handlers.native.descriptions import Descriptions, Name
from sidecar.handlers.native.engines import Engine
from sidecar.handlers.native.membership import Membership
from sidecar.handlers.native.names import padded
from sidecar.tiers.names import object_name, space_name
from sidecar.wire import native as wire
from sidecar.wire.endpoint import Refused, Request

# In one answer.
_MOST_TOLD = 512
_MOST_TOLD_BYTES = 1 << 20
_MOST_SCANNED = 1 << 13
_MOST_CHANGES = 256
# Objects that other engines have described, and of which one has not read.
MOST_DESCRIBED = 1 << 14

# By group and hash; None is none of the engine's.
Objects = Iterator[tuple[int, bytes] | None]


class Reader:
    """What one engine is to be told next. `spaces` are what its objects are in, by group."""

    def __init__(self, spaces: tuple[SpaceKey, ...], cursor: int, inventory: Objects) -> None:
        self.spaces = spaces
        self._groups = {space: group for group, space in enumerate(spaces)}
        self._cursor, self._inventory = cursor, inventory
        self._changed: deque[Objects] = deque()
        self._described: list[tuple[int, bytes]] = []
        self.whole = False

    def hear(self, described: Sequence[tuple[int, bytes]]) -> None:
        """These objects have a description now."""
        left = MOST_DESCRIBED + 1 - len(self._described)  # one more tells that some are lost
        self._described += described[:left]

    def follow(self, changes: Changes) -> bool:
        """Read on in `changes`, unless some are still to be told. False: some are lost."""
        if self._changed:
            return True
        page = changes.since(self._cursor, _MOST_CHANGES)
        self._cursor = page.cursor
        for change in page.changes:
            if (group := self._groups.get(change.space)) is not None:
                self._changed.append(_of_group(group, change.hashes))
        is_lost = page.lost or len(self._described) > MOST_DESCRIBED
        if self._described:
            self._changed.append(iter(self._described))
            self._described = []
        return not is_lost

    def has_more(self, changes: Changes) -> bool:
        unread = changes.since(self._cursor, 1).changes
        return bool(self._changed or self._described or unread) or not self.whole

    def take(self) -> Objects:
        """What is to be told, changes first. Whoever stops goes on there with the next call."""
        while self._changed:
            # A loop leaves the iterator open where it ends early; `yield from` would close it.
            for each in self._changed[0]:
                yield each
            self._changed.popleft()
        for each in self._inventory:
            yield each
        self.whole = True


class Holdings:
    """native_describe, native_holdings."""

    def __init__(self, core: Core, membership: Membership) -> None:
        self._core, self._membership = core, membership
        self._readers: dict[int, Reader] = {}  # by session
        self._descriptions = Descriptions(lambda name: self._media(name) != 0)

    def describe(self, request: Request, ask: wire.Describe) -> int:
        """How many of these are news. An object may be described before it is there."""
        engine = self._engine(request, ask.session)
        news = []
        for group, hash, description in ask.items:
            if group < engine.attach.groups:
                name = Name(engine.spaces[group], padded(hash))
                if self._descriptions.put(name, description):
                    news.append((group, name.hash))
        for reader in self._readers.values() if news else ():
            if reader.spaces == engine.spaces:
                reader.hear(news)
        return len(news)

    def read(self, request: Request, ask: wire.ReadHoldings) -> wire.Holdings:
        """Where those objects are now that the engine does not know of."""
        engine, changes = self._engine(request, ask.session), self._core.l1.changes
        telemetry = self._core.telemetry
        reader, begun = self._readers.get(engine.session), False
        if ask.begin or reader is None or reader.spaces != engine.spaces:
            reader, begun = self._begin(engine), True
        if not reader.follow(changes):
            telemetry.kv_events_lost.add(1, "native")
            reader, begun = self._begin(engine), True
        items = self._tell(reader)
        telemetry.kv_events_sent.add(len(items), "native")
        return wire.Holdings(items, begun, reader.whole, reader.has_more(changes))

    def count(self) -> int:
        """How many engines read."""
        return len(self._readers)

    def let_go(self, engine: Engine) -> None:
        """It reads nothing any more."""
        self._readers.pop(engine.session, None)

    def _engine(self, request: Request, session: int) -> Engine:
        engine = self._membership.engine(request, session)
        if not engine.attach.events:
            raise Refused("no_events", f"session {session} has attached without events")
        if not engine.ready:
            raise Refused("not_ready", f"session {session}")
        return engine

    def _begin(self, engine: Engine) -> Reader:
        # First the cursor: what changes while all is told is told again.
        cursor = self._core.l1.changes.begin()
        reader = Reader(engine.spaces, cursor, self._inventory(engine.spaces))
        self._readers[engine.session] = reader
        return reader

    def _inventory(self, spaces: tuple[SpaceKey, ...]) -> Objects:
        """All that is there now. It is looked through bit by bit; of L2 the names are copied."""
        in_l1 = [
            (group, space.ready.snapshot())
            for group, key in enumerate(spaces)
            if (space := self._core.l1.space(key)) is not None
        ]
        # The head of a sequence before its tail, which a router may not know what to do with.
        in_l2 = [backend.catalog.names()[::-1] for backend in self._core.tiers.backends]
        groups = {space_name(space): group for group, space in enumerate(spaces)}

        def all_objects() -> Objects:
            for group, hashes in in_l1:
                yield from _of_group(group, hashes)
            for names in in_l2:
                for name in names:
                    group_of = groups.get(name.space)
                    yield None if group_of is None else (group_of, name.hash)

        return all_objects()

    def _tell(self, reader: Reader) -> list[tuple[int, bytes, int, bytes]]:
        items, size = [], 0
        for each in islice(reader.take(), _MOST_SCANNED):
            if each is not None:
                group, hash = each
                name = Name(reader.spaces[group], hash)
                description = self._descriptions.get(name)
                items.append((group, hash, self._media(name), description))
                size += len(description)
            if len(items) >= _MOST_TOLD or size >= _MOST_TOLD_BYTES:
                break
        return items

    def _media(self, name: Name) -> int:
        space = self._core.l1.space(name.space)
        below = object_name(name.space, name.hash)
        is_below = any(below in backend.catalog for backend in self._core.tiers.backends)
        in_l1 = space is not None and name.hash in space.ready
        return wire.IN_L1 * in_l1 + wire.IN_L2 * is_below


def _of_group(group: int, hashes: Iterable[bytes]) -> Objects:
    return ((group, hash) for hash in hashes)
