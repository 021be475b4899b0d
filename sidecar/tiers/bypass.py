"""The seam for what moves objects between workers and a backend past the L1."""

from typing import Protocol

from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.telemetry.spans import Span
from sidecar.tiers.backend import Backend
from sidecar.tiers.names import ObjectName


class Source(Protocol):
    """Where a lookup finds objects that need no slot of the L1. Its entries are held as all are."""

    def find(self, space: SpaceKey, chunk_hash: bytes) -> Entry | None:
        """The object, if it is there for one more lookup, or on its way."""

    def begin(
        self, space: SpaceKey, name: ObjectName, size: int, backend: Backend, span: Span
    ) -> Entry | None:
        """Begin to get an object of `size` bytes that `backend` has and `find` does not know.

        None if it has to come through the L1.
        """


class Bypass(Protocol):
    """What the tiers tell and ask it. Loop thread only."""

    def writing(self, backend: Backend) -> int:
        """Objects that are on their way to `backend`."""

    def busy(self, backend: Backend) -> set[ObjectName]:
        """What must not be evicted from `backend` now."""

    def kept(self, backend: Backend, name: ObjectName) -> None:
        """Something was stored under `name`."""

    def loaded(self, name: ObjectName) -> None:
        """An object has come into the L1 and was good."""

    def forget_all(self) -> None:
        """The cache has been cleared: nothing of it is to be found any more."""
