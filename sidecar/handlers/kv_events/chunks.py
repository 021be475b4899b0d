"""What chunk hashes stand for: routers compare tokens, and the cache keeps none."""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence

from msgspec import Struct

from sidecar.cache.changes import Medium
from sidecar.cache.keys import BYTES_PER_TOKEN
from sidecar.cache.leases import Scope
from sidecar.flow import Signal

_MAX_BYTES = 64 << 20
_OVERHEAD_BYTES = 300  # of one chunk, beside its tokens
_MAX_FRESH = 1 << 17

Place = tuple[str, Medium]
"""A model's name, and where its objects are."""


class Chunk(Struct, gc=False, eq=False):
    """The tokens as big-endian u32, and the hash of the chunk before it.

    `told` are the places where readers know it to be.
    """

    tokens: bytes
    parent: bytes | None
    told: tuple[Place, ...] = ()


class Chunks:
    """The chunks of the latest requests; a sequence's tail is forgotten before its head.

    Nothing is noted until somebody tells of it. Loop thread only.
    """

    def __init__(self, chunk_size: int) -> None:
        self.on = False
        self._width = chunk_size * BYTES_PER_TOKEN
        self._most = _MAX_BYTES // (self._width + _OVERHEAD_BYTES)
        self._known: OrderedDict[bytes, Chunk] = OrderedDict()
        self._fresh: deque[tuple[Scope, list[bytes]]] = deque()
        self._fresh_hashes = 0
        self._forgotten: list[tuple[bytes, Chunk]] = []
        self.news = Signal()  # there is something to take

    def note(self, scope: Scope, hashes: Sequence[bytes], tokens: bytes) -> None:
        """A request has named the sequence `hashes`, whose chunks these tokens begin with."""
        fresh = []
        for at in range(len(hashes) - 1, -1, -1):
            name = hashes[at]
            chunk = self._known.get(name)
            if chunk is None:
                start = at * self._width
                parent = hashes[at - 1] if at else None
                self._known[name] = chunk = Chunk(tokens[start : start + self._width], parent)
            else:
                self._known.move_to_end(name)
            if not chunk.told:
                fresh.append(name)
        while len(self._known) > self._most:
            name, chunk = self._known.popitem(last=False)
            if chunk.told:
                self._forgotten.append((name, chunk))
        if fresh or self._forgotten:
            self._add_fresh(scope, fresh[::-1])

    def get(self, name: bytes) -> Chunk | None:
        return self._known.get(name)

    def told(self, place: Place) -> Iterator[bytes]:
        """The hashes of those that readers know to be there, a sequence's head before its tail."""
        return (name for name, chunk in reversed(self._known.items()) if place in chunk.told)

    def names(self) -> list[bytes]:
        return list(self._known)

    def take_fresh(self) -> tuple[Scope, list[bytes]] | None:
        """Some of a sequence of which nothing is told, though it may be there."""
        if not self._fresh:
            return None
        scope, names = self._fresh.popleft()
        self._fresh_hashes -= len(names)
        return scope, names

    def take_forgotten(self) -> list[tuple[bytes, Chunk]]:
        """What readers know of, and the server does not any more."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    def _add_fresh(self, scope: Scope, names: list[bytes]) -> None:
        self._fresh.append((scope, names))
        self._fresh_hashes += len(names)
        while self._fresh_hashes > _MAX_FRESH and len(self._fresh) > 1:
            self.take_fresh()  # they are fresh again with their next request
        self.news.fire()
