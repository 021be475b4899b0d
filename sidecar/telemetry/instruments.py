"""Instruments that cost a dict look-up to record, and are read only when somebody exports.

One thread records (the wire thread), any thread may read: a reader may see the sum of a histogram
one observation ahead of its buckets, never a broken series. OpenTelemetry's own synchronous
instruments take ten times as long to record, and do not exist for a scraper before first use.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

# Label values come from clients: a name that is new with each request must not fill the memory.
MAX_SERIES = 200
MAX_LABEL_LENGTH = 128
OTHER = "other"


@dataclass(frozen=True)
class Description:
    """What an exporter says of an instrument. Values for ``labels`` come with each record."""

    name: str
    unit: str
    text: str
    labels: tuple[str, ...] = ()
    fixed: Mapping[str, str] = field(default_factory=dict)

    def attributes(self, values: Sequence[str] = ()) -> dict[str, str]:
        """All labels of the series with these values."""
        return {**self.fixed, **dict(zip(self.labels, values, strict=True))}


Cell = TypeVar("Cell")


class _Instrument(Generic[Cell]):
    """One cell for each tuple of label values, bounded in number and length."""

    def __init__(self, description: Description, new_cell: Callable[[], Cell]) -> None:
        self.description = description
        self._new_cell = new_cell
        self._cells: dict[tuple[object, ...], Cell] = {}

    def series(self) -> list[tuple[dict[str, str], Cell]]:
        """Labels and cell of each series; before first use, one of zero with empty labels."""
        unused: tuple[object, ...] = ("",) * len(self.description.labels)
        cells = self._cells.copy() or {unused: self._new_cell()}
        return [
            (self.description.attributes([str(value) for value in values]), cell)
            for values, cell in cells.items()
        ]

    def _find(self, labels: tuple[object, ...]) -> Cell:
        """The cell of label values that are new, or are not in their stored form."""
        if len(labels) != len(self.description.labels):
            raise TypeError(f"{self.description.name} has the labels {self.description.labels}")
        stored: tuple[object, ...] = tuple(_clean(value) for value in labels)
        if stored not in self._cells and len(self._cells) >= MAX_SERIES:
            stored = (OTHER,) * len(labels)
        return self._cells.setdefault(stored, self._new_cell())


def _clean(value: object) -> str:
    # A lone surrogate in one label would make the whole page of metrics impossible to encode.
    return str(value)[:MAX_LABEL_LENGTH].encode("utf-8", "replace").decode()


class Count:
    """The value of one series of a counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Counter(_Instrument[Count]):
    """A sum that only grows."""

    def __init__(self, description: Description) -> None:
        super().__init__(description, Count)

    def add(self, amount: int, *labels: object) -> None:
        """Count ``amount`` under label values in their declared order."""
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._find(labels)
        cell.value += amount

    def total(self, *labels: str) -> int:
        """The sum over all series whose label values begin with these."""
        cells = self._cells.copy().items()
        return sum(cell.value for of, cell in cells if of[: len(labels)] == labels)


class Distribution:
    """One series of a histogram: ``counts[i]`` values were <= bound i and > bound i - 1."""

    __slots__ = ("counts", "largest", "smallest", "total")

    def __init__(self, buckets: int) -> None:
        self.counts = [0] * buckets
        self.total = 0.0
        self.smallest = float("inf")
        self.largest = float("-inf")


class Histogram(_Instrument[Distribution]):
    """A distribution over fixed buckets, the last one unbounded."""

    def __init__(self, description: Description, bounds: Sequence[float]) -> None:
        super().__init__(description, lambda: Distribution(len(bounds) + 1))
        self.bounds = tuple(map(float, bounds))

    def record(self, value: float, *labels: object) -> None:
        """Count one observation, in the instrument's unit."""
        cell = self._cells.get(labels)
        if cell is None:
            cell = self._find(labels)
        cell.counts[bisect_left(self.bounds, value)] += 1
        cell.total += value
        cell.smallest = min(cell.smallest, value)
        cell.largest = max(cell.largest, value)


class Gauge:
    """A value that is asked for at each export; 0 until somebody gives a source.

    With labels there is one value for each `source` that was given with label values.
    """

    def __init__(self, description: Description) -> None:
        self.description = description
        self._sources: dict[tuple[str, ...], Callable[[], float]] = {}
        self._all: Callable[[], Mapping[tuple[str, ...], float]] | None = None

    def observe(self, source: Callable[[], float], *labels: str) -> None:
        """Let the series with these label values be what `source` returns."""
        self._sources[labels] = source

    def observe_all(self, source: Callable[[], Mapping[tuple[str, ...], float]]) -> None:
        """Let `source` tell all series there are, by their label values."""
        self._all = source

    def series(self) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series; without any source, zero with empty labels."""
        if self._all is not None:
            of_all = self._all().items()
            return [(self.description.attributes(values), value) for values, value in of_all]
        unused: tuple[str, ...] = ("",) * len(self.description.labels)
        sources = self._sources or {unused: lambda: 0.0}
        return [
            (self.description.attributes(values), source()) for values, source in sources.items()
        ]
