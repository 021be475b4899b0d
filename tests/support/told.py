"""What a reader of the changes knows: the same as who looks."""

from __future__ import annotations

from collections import Counter

from sidecar.cache.changes import Medium
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.tiers.backend import Backend
from sidecar.tiers.names import parse_space

Objects = Counter[tuple[Medium, SpaceKey, bytes]]


class Told:
    """Begins with nothing known, in an empty cache."""

    def __init__(self, l1: L1) -> None:
        self._changes = l1.changes
        self._cursor = l1.changes.begin()
        self._known: Objects = Counter()

    def check(self, l1: L1, backends: list[Backend]) -> None:
        """Compare what was told since the last time with what is there."""
        page = self._changes.since(self._cursor, 1 << 20)
        assert not page.lost
        self._cursor = page.cursor
        for change in page.changes:
            for each in change.hashes:
                name = change.medium, change.space, each
                self._known[name] += 1 if change.stored else -1
        assert +self._known == objects(l1, backends) and not -self._known


def objects(l1: L1, backends: list[Backend]) -> Objects:
    found = Counter((Medium.CPU, space.key, each) for space in l1.spaces() for each in space.ready)
    for backend in backends:
        for name in backend.catalog.names():
            key = parse_space(name.space)
            assert key is not None
            found[Medium.STORAGE, key, name.hash] += 1
    return found
