"""Whether a medium has a chunk for all ranks of a model: a part of it is of no use."""

from collections import defaultdict
from collections.abc import Container

from sidecar.cache.changes import Medium
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Scope
from sidecar.tiers.backend import Backend
from sidecar.tiers.catalog import Catalog
from sidecar.tiers.names import ObjectName, parse_space


class _Below:
    """A space of a backend, as a container of chunk hashes."""

    def __init__(self, catalog: Catalog, space: str) -> None:
        self._catalog, self._space = catalog, space

    def __contains__(self, chunk_hash: object) -> bool:
        return (
            isinstance(chunk_hash, bytes) and ObjectName(self._space, chunk_hash) in self._catalog
        )


class Coverage:
    """Where the objects of one model and tenant are, as of now. What comes later is not in it."""

    def __init__(self, l1: L1, backends: list[Backend], scope: Scope) -> None:
        self._ranks = range(scope.world_size)
        places: dict[Medium, defaultdict[int, list[Container[bytes]]]]
        places = {medium: defaultdict(list) for medium in Medium}
        for space in l1.spaces():
            if scope_of_space(space.key) == scope:
                places[Medium.CPU][space.key.rank].append(space.ready)
        for backend in backends:
            for name in backend.catalog.spaces():
                key = parse_space(name)
                if key is not None and scope_of_space(key) == scope:
                    places[Medium.STORAGE][key.rank].append(_Below(backend.catalog, name))
        self._places = places

    def has(self, medium: Medium, chunk_hash: bytes) -> bool:
        by_rank = self._places[medium]
        return all(any(chunk_hash in place for place in by_rank[rank]) for rank in self._ranks)


def scope_of_space(key: SpaceKey) -> Scope:
    return Scope(key.model_name, key.world_size, key.cache_salt)
