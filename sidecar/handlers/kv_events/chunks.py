"""What chunk hashes stand for: routers compare tokens, and the cache keeps none."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import NamedTuple

from sidecar.cache.keys import BYTES_PER_TOKEN
from sidecar.cache.leases import Scope
from sidecar.flow import Outcome

_MAX_BYTES = 64 << 20
_OVERHEAD_BYTES = 300  # of one chunk, beside its tokens
_MAX_FRESH = 1024  # lookups


class Chunk(NamedTuple):
    """The tokens as big-endian u32, and the hash of the chunk before it."""

    tokens: bytes
    parent: bytes | None


class Chunks:
    """The chunks of the latest requests; a sequence's tail is forgotten before its head.

    Nothing is noted until somebody tells of it. Loop thread only.
    """

    def __init__(self, chunk_size: int) -> None:
        self.on = False
        self._width = chunk_size * BYTES_PER_TOKEN
        self._most = _MAX_BYTES // (self._width + _OVERHEAD_BYTES)
        self._known: OrderedDict[bytes, Chunk] = OrderedDict()
        self._fresh: deque[tuple[Scope, list[bytes]]] = deque(maxlen=_MAX_FRESH)
        self._news: Outcome[None] = Outcome()

    def __len__(self) -> int:
        return len(self._known)

    def note(self, scope: Scope, hashes: Sequence[bytes], tokens: bytes) -> None:
        """A request has named the sequence `hashes`, whose chunks these tokens begin with."""
        fresh = []
        for at in range(len(hashes) - 1, -1, -1):
            name = hashes[at]
            if name in self._known:
                self._known.move_to_end(name)
                continue
            start = at * self._width
            parent = hashes[at - 1] if at else None
            self._known[name] = Chunk(tokens[start : start + self._width], parent)
            fresh.append(name)
        while len(self._known) > self._most:
            self._known.popitem(last=False)
        if fresh:
            self._fresh.append((scope, fresh[::-1]))
            news, self._news = self._news, Outcome()
            news.set(None)

    def get(self, name: bytes) -> Chunk | None:
        return self._known.get(name)

    def names(self) -> list[bytes]:
        """All of them, a sequence's head before its tail."""
        return list(reversed(self._known))

    def take_fresh(self) -> list[tuple[Scope, list[bytes]]]:
        """What has become known since the last call."""
        fresh = list(self._fresh)
        self._fresh.clear()
        return fresh

    def news(self) -> Outcome[None]:
        """An outcome that is set when something becomes known."""
        return self._news
