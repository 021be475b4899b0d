"""What operators have protected in the L1: the beginning of a sequence, for a time."""

import secrets
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sidecar.cache.entry import Entry
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Scope
from sidecar.cache.protections import Protection, TooMuchToProtect

_MOST = 1024
_REMEMBERED_CHUNKS = 1 << 16


class RecentLookups:
    """The sequences of the last requests, by request id: `most` chunks of them."""

    def __init__(self, most: int = _REMEMBERED_CHUNKS) -> None:
        self._most = most
        self._sequences: OrderedDict[str, tuple[Scope, Sequence[bytes]]] = OrderedDict()
        self._chunks = 0

    def add(self, request_id: str, scope: Scope, hashes: Sequence[bytes]) -> None:
        """A request has looked this up. What has no chunk is not worth remembering."""
        self._forget(request_id)
        if hashes:
            self._sequences[request_id] = scope, hashes
            self._chunks += len(hashes)
        while self._chunks > self._most:
            self._forget(next(iter(self._sequences)))

    def sequence(self, request_id: str) -> tuple[Scope, Sequence[bytes]]:
        """Raises KeyError for a request that is not known any more."""
        return self._sequences[request_id]

    def _forget(self, request_id: str) -> None:
        _, hashes = self._sequences.pop(request_id, (None, ()))
        self._chunks -= len(hashes)


class Shown(NamedTuple):
    """A protection for people; `chunks` are `objects`, one for each rank and layout."""

    id: str
    model_name: str
    cache_salt: str
    chunks: int
    objects: int
    nbytes: int
    seconds_left: float


class Protecting:
    """Loop thread only."""

    def __init__(self, l1: L1, recent: RecentLookups) -> None:
        self._l1, self._recent = l1, recent

    def protect_request(self, request_id: str, seconds: float, now: float) -> Shown:
        """Protect what a request has looked up, as far as it is there.

        Raises as `protect_sequence`.
        """
        scope, hashes = self._recent.sequence(request_id)
        return self._protect(scope, hashes, seconds, now)

    def protect_sequence(
        self, model_name: str, world_size: int, cache_salt: str, hashes: Sequence[bytes],
        seconds: float, now: float,
    ) -> Shown:  # fmt: skip
        """Protect what the L1 has of a sequence's beginning, of every rank and in every layout.

        Raises KeyError if there is nothing, TooMuchToProtect (a LookupError) if it is too much.
        """
        return self._protect(Scope(model_name, world_size, cache_salt), hashes, seconds, now)

    def remove(self, id: str) -> bool:
        """Whether there was one of this id."""
        return self._l1.protections.remove(id)

    def report(self, now: float) -> dict[str, Any]:
        """All of them, and how many bytes they have of how many."""
        shown = [_shown(each, now)._asdict() for each in self._l1.protections]
        return {**self.totals(), "protections": shown}

    def totals(self) -> dict[str, int]:
        """How many, and how many bytes of how many."""
        found = self._l1.protections
        return {"count": len(found), "used_bytes": found.nbytes, "limit_bytes": found.limit}

    def _protect(self, scope: Scope, hashes: Sequence[bytes], seconds: float, now: float) -> Shown:
        entries = list(self._found(scope, hashes))
        if not entries:
            raise KeyError("nothing of it is in the L1")
        if len(self._l1.protections) >= _MOST:
            raise TooMuchToProtect(f"{_MOST} sequences are protected")
        id = f"protection-{secrets.token_hex(8)}"
        return _shown(self._l1.protections.add(id, entries, now + seconds), now)

    def _found(self, scope: Scope, hashes: Sequence[bytes]) -> Iterator[Entry]:
        for space in self._l1.spaces():
            if Scope.of(space.key) == scope:
                yield from space.prefix(hashes)


def _shown(protection: Protection, now: float) -> Shown:
    key, entries = protection.entries[0].space.key, protection.entries
    chunks = len({entry.hash for entry in entries})
    left = max(0.0, protection.deadline - now)
    return Shown(
        protection.id, key.model_name, key.cache_salt, chunks, len(entries), protection.nbytes, left
    )
