"""The contract of an L2 adapter, and the ways in which a backend can fail."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from sidecar.tiers.names import ObjectName

Bytes = npt.NDArray[np.uint8]


class AdapterUnusable(Exception):
    """The backend cannot be used as configured; the text says why and what to do."""


class TierError(Exception):
    """A backend could not do what it was asked. `cause` is a short label for metrics."""

    def __init__(self, cause: str, detail: str = "") -> None:
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause


class Missing(TierError):
    """There is no such object."""

    def __init__(self) -> None:
        super().__init__("missing")


class Corrupt(TierError):
    """The object is there, but it is not what its name says. Nothing of it may be used."""


class NoSpace(TierError):
    """The backend is full."""


class Relocated(TierError):
    """What was there is out of reach. Something else is used now, of which nothing is known."""

    def __init__(self, where: str) -> None:
        super().__init__("moved", f"{where} is not what it was")


class Found(NamedTuple):
    """One object of a scan: its record's size in bytes, when it was last used (any epoch)."""

    name: ObjectName
    size: int
    used_at: float


class Adapter(Protocol):
    """One backend that keeps records by name.

    A record is one object with its header (`sidecar.tiers.record`): a run of bytes of the
    arena that begins on a page and is whole pages long. Adapters move it as it is.

    Methods block and may be called by several threads at once, but for `open` and `close`.
    They raise TierError (or a subclass) when they fail; anything else is a bug. A call that
    takes too long is not waited for, but has its record until it returns. Sequences of names
    are never empty, and no two calls change what is under one name at the same time.
    """

    shared: bool
    """Others write and delete here too, so only the backend knows what it has."""

    def open(self, arena: Bytes) -> None:
        """Get ready to move bytes of `arena`, which stays where it is until `close`.

        Raises AdapterUnusable. Called before anything is served: the arena is at rest.
        """

    def close(self) -> None:
        """Give back what `open` took. No other call is under way, unless it is stuck."""

    def store(self, name: ObjectName, record: Bytes) -> None:
        """Keep a copy of `record`. It is found under `name` only when it is complete.

        It takes the place of what is there already, as far as the backend can do that.
        """

    def load(self, name: ObjectName, record: Bytes) -> None:
        """Fill `record` with what `store` was given under `name`, to the last byte.

        Raises Missing, or Corrupt if there is more or less than `record` holds.
        """

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        """For each name the size of its record in bytes, None if there is none.

        A backend that does not know sizes says 0 for what is there.
        """

    def delete(self, names: Sequence[ObjectName]) -> None:
        """Remove these, so that they are Missing, now and later; some may be so already.

        Where objects can be written but not removed, each is replaced by a small one that is
        known to be none. If one cannot be removed, it is not certain which of the others are.
        """

    def scan(self) -> Iterator[list[Found]]:
        """All objects, of all epochs, in batches, in any order; nothing where the backend
        does not list. What is stored meanwhile may be missing.
        """

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        """Take a bad object away from its name, keeping it for inspection where possible.

        What is kept is bounded. Returns whether it was kept.
        """

    def read_mark(self) -> str | None:
        """What was given to `write_mark` last, by whoever uses this backend; None if nothing was,
        or if it is lost. "" where it is certain that nothing was.
        """

    def write_mark(self, mark: str) -> None:
        """Keep this text, of at most 64 ASCII characters. It is durable when this returns."""

    def room(self) -> int | None:
        """How many bytes may still be written, None if the backend does not know."""


def batches(found: Iterable[Found], size: int = 512) -> Iterator[list[Found]]:
    """Cut `found` into lists of `size`."""
    batch: list[Found] = []
    for item in found:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
