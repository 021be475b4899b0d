"""Objects one by one, for operators: what L2 has, and deletion."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from sidecar.cache.keys import SpaceKey
from sidecar.handlers.core import Core
from sidecar.tiers.backend import Backend
from sidecar.tiers.names import ObjectName, parse_space, space_name


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
        backend = self._backend(adapter)
        catalog = backend.catalog
        return Listing(backend.label, backend.adapter.shared, catalog.names(), catalog.size)

    def key_of(self, name: ObjectName) -> ObjectKey | None:
        """The key behind a name; None if the name does not tell it. Any thread."""
        space = parse_space(name.space)
        return None if space is None else ObjectKey(name.hash, *_owner(space))

    def delete_from_l2(
        self, keys: Sequence[tuple[bytes, str, int, str]], adapter: str | None
    ) -> "Future[tuple[int, int]]":
        """Remove these objects, in every layout that is known; how many went, how many did not."""
        backend, wanted = self._backend(adapter), _by_owner(keys)
        known = {space_name(space.key) for space in self._core.l1.spaces()}
        names = []
        for name in known.union(backend.catalog.spaces()):
            space = parse_space(name)
            hashes = wanted.get(_owner(space), ()) if space is not None else ()
            names += [ObjectName(name, chunk_hash) for chunk_hash in hashes]
        future: Future[tuple[int, int]] = Future()
        self._core.tiers.delete(backend, names, future.set_result)
        return future

    def delete_from_l1(
        self, keys: Sequence[tuple[bytes, str, int, str]], force: bool
    ) -> tuple[int, int]:
        """The same in the L1: how many went, and how many somebody holds (not with `force`)."""
        l1, wanted = self._core.l1, _by_owner(keys)
        hashes = {space: wanted.get(_owner(space.key), set()) for space in l1.spaces()}
        deleted = skipped = 0
        for entry in [entry for entry in l1.unproven if entry.hash in hashes[entry.space]]:
            deleted += not l1.knows(entry.space.key, entry.hash)
            l1.disown(entry)  # else it would be found once it has proven itself
        for space in hashes:
            for entry in filter(None, map(space.ready.get, hashes[space])):
                if l1.discard(entry, force):
                    deleted += 1
                else:
                    skipped += 1
        return deleted, skipped

    def _backend(self, adapter: str | None) -> Backend:
        backends = self._core.tiers.backends
        if not backends:
            raise LookupError("no L2 adapter is configured")
        for backend in backends:
            if adapter in (None, backend.label):
                return backend
        raise KeyError(adapter)


def _by_owner(
    keys: Sequence[tuple[bytes, str, int, str]],
) -> dict[tuple[str, int, str], set[bytes]]:
    """The hashes by what else is in a key: there may be thousands of spaces, and of keys."""
    found: dict[tuple[str, int, str], set[bytes]] = {}
    for chunk_hash, model_name, kv_rank, salt in keys:
        found.setdefault((model_name, kv_rank, salt), set()).add(chunk_hash)
    return found


def _owner(space: SpaceKey) -> tuple[str, int, str]:
    """Model name, kv_rank and salt of the keys in a space."""
    world, rank = space.world_size, space.rank
    return space.model_name, world << 24 | rank << 16 | world << 8 | rank, space.cache_salt
