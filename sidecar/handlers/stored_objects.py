"""Objects one by one, for operators: what L2 has, and deletion."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sidecar.cache.keys import SpaceKey
from sidecar.handlers.core import Core
from sidecar.tiers.lane import Lane
from sidecar.tiers.names import ObjectName, parse_space


class ObjectKey(NamedTuple):
    """An object as the protocol names it (section 2.0 of the notes): without its layout."""

    hash: bytes
    model_name: str
    kv_rank: int
    cache_salt: str


class Listing(NamedTuple):
    """What an adapter is known to have; `size_of` a name is in bytes, for any thread.

    Sizes are asked for one by one: looking up all of a million takes a second.
    """

    adapter: str
    shared: bool
    names: list[ObjectName]
    size_of: Callable[[ObjectName], int]


class StoredObjects:
    """Loop thread only. Adapters are named by their labels; None means the first one.

    All raise KeyError for an adapter that is not there, LookupError if there is none at all.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def listing(self, adapter: str | None) -> Listing:
        """All of one adapter, the least recently used first."""
        lane = self._lane(adapter)
        catalog = lane.catalog
        return Listing(lane.label, lane.adapter.shared, catalog.names(), catalog.size)

    def key_of(self, name: ObjectName) -> ObjectKey | None:
        """The key behind a name; None if the name does not tell it. Any thread."""
        space = parse_space(name.space)
        return None if space is None else _key(space, name.hash)

    def delete_from_l2(
        self, keys: Sequence[tuple[bytes, str, int, str]], adapter: str | None
    ) -> int:
        """Remove these objects, in every layout they are kept in; how many were known."""
        lane, wanted = self._lane(adapter), set(keys)
        hashes = {key[0] for key in keys}
        names = [
            name
            for name in lane.catalog.names()
            if name.hash in hashes and self.key_of(name) in wanted
        ]
        return lane.delete(names)

    def delete_from_l1(
        self, keys: Sequence[tuple[bytes, str, int, str]], force: bool
    ) -> tuple[int, int]:
        """The same in the L1: how many went, and how many somebody holds (not with `force`)."""
        deleted = skipped = 0
        for space in self._core.l1.spaces():
            for key in keys:
                entry = space.ready.get(key[0])
                if entry is None or key != _key(space.key, key[0]):
                    continue
                if self._core.l1.discard(entry, force):
                    deleted += 1
                else:
                    skipped += 1
        return deleted, skipped

    def _lane(self, adapter: str | None) -> Lane:
        lanes = self._core.tiers.lanes
        if not lanes:
            raise LookupError("no L2 adapter is configured")
        for lane in lanes:
            if adapter in (None, lane.label):
                return lane
        raise KeyError(adapter)


def _key(space: SpaceKey, chunk_hash: bytes) -> ObjectKey:
    world, rank = space.world_size, space.rank
    kv_rank = world << 24 | rank << 16 | world << 8 | rank
    return ObjectKey(chunk_hash, space.model_name, kv_rank, space.cache_salt)
