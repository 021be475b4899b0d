"""No eviction."""

from collections.abc import Iterable

from sidecar.cache.entry import Entry


class NoEviction:
    """Nothing ever goes; a full cache stores no more."""

    def next_place(self, entry: Entry) -> int:
        return 0

    def add(self, entry: Entry) -> None:
        pass

    def remove(self, entry: Entry) -> None:
        pass

    def evicted(self, entry: Entry) -> None:
        pass

    def recalls(self, entry: Entry) -> bool:
        return False

    def clear(self) -> None:
        pass

    def candidates(self) -> Iterable[Entry]:
        return ()
