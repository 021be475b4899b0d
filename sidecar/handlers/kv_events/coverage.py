"""Whether a medium has a chunk for all ranks of a model: a part of it is of no use."""

from collections import defaultdict
from collections.abc import Container, Sequence

from sidecar.cache.changes import Medium
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Scope
from sidecar.tiers.backend import Backend
from sidecar.tiers.catalog import Catalog
from sidecar.tiers.names import ObjectName, parse_space

_ByRank = defaultdict[int, list[Container[bytes]]]


class _Below:
    """A space of a backend, as a container of chunk hashes."""

    def __init__(self, catalog: Catalog, space: str) -> None:
        self._catalog, self._space = catalog, space

    def __contains__(self, chunk_hash: object) -> bool:
        return (
            isinstance(chunk_hash, bytes) and ObjectName(self._space, chunk_hash) in self._catalog
        )


class Coverage:
    """Where all objects are, as of now: it holds until the loop does something else."""

    def __init__(self, l1: L1, backends: Sequence[Backend]) -> None:
        self._places: defaultdict[tuple[Scope, Medium], _ByRank]
        self._places = defaultdict(lambda: defaultdict(list))
        for space in l1.spaces():
            self._add(space.key, Medium.CPU, space.ready)
        for backend in backends:
            for name in backend.catalog.spaces():
                if (key := parse_space(name)) is not None:
                    self._add(key, Medium.STORAGE, _Below(backend.catalog, name))

    def has(self, scope: Scope, medium: Medium, chunk_hash: bytes) -> bool:
        by_rank = self._places.get((scope, medium))
        return by_rank is not None and all(
            any(chunk_hash in place for place in by_rank[rank]) for rank in range(scope.world_size)
        )

    def scopes(self) -> list[tuple[Scope, Medium]]:
        """All of which something is there."""
        return list(self._places)

    def _add(self, key: SpaceKey, medium: Medium, place: Container[bytes]) -> None:
        self._places[Scope.of(key), medium][key.rank].append(place)
