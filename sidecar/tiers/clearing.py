"""What came of a clear or of deletions, told when it is known: what lasts, what is still there."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sidecar.tiers.backend import Backend
from sidecar.tiers.names import ObjectName

# A clear is answered when it lasts; if it does not yet, after this.
_MARK_SECONDS = 5.0
# Objects that are out of sight need not be gone: the answer tells how many are not.
_DELETION_SECONDS = 1.0
_POLL_SECONDS = 0.01


Later = Callable[[float, Callable[[], None]], None]


@dataclass(frozen=True, slots=True)
class Cleared:
    """One adapter after a clear. What was there is found by nobody, and if it `lasts`, never again.

    `deleted` objects are gone, `deleting` are still to go, `undeletable` could not be removed
    and stay out of sight. `detail` says why it does not last, or why they are undeletable.
    """

    adapter: str
    lasts: bool
    deleted: int
    deleting: int
    undeletable: int
    detail: str


def when_cleared(
    backends: Sequence[Backend], later: Later, then: Callable[[list[Cleared]], None]
) -> None:
    """Tell `then` what came of a clear of all `backends` that has just begun."""
    _look_at_clear(backends, later, then, time.monotonic())


def _look_at_clear(
    backends: Sequence[Backend], later: Later, then: Callable[[list[Cleared]], None], began: float
) -> None:
    elapsed = time.monotonic() - began
    marked = not any(backend.marking.unmarked for backend in backends)
    if (elapsed < _MARK_SECONDS and not marked) or (
        elapsed < _DELETION_SECONDS and any(backend.clearing for backend in backends)
    ):
        later(_POLL_SECONDS, partial(_look_at_clear, backends, later, then, began))
    else:
        then([_outcome(backend) for backend in backends])


class _Deletion:
    """Of those of `names` that `backend` knows."""

    def __init__(
        self, backend: Backend, names: Sequence[ObjectName], later: Later,
        then: Callable[[tuple[int, int]], None],
    ) -> None:  # fmt: skip
        self._backend = backend
        self._names = names
        self._later = later
        self._then = then
        self._deadline = time.monotonic() + _MARK_SECONDS

    def begin(self) -> None:
        backend, names = self._backend, self._names
        if any(map(backend.removal.is_changing, names)) and time.monotonic() < self._deadline:
            self._later(_POLL_SECONDS, self.begin)
            return
        known = [name for name in names if name in backend.catalog]
        backend.delete(known)
        self._look(known, [name for name in names if backend.removal.is_changing(name)])

    def _look(self, known: list[ObjectName], changing: list[ObjectName]) -> None:
        catalog = self._backend.catalog
        doomed = [catalog.doomed[name] for name in known if name in catalog.doomed]
        if all(each.failed for each in doomed) or time.monotonic() >= self._deadline:
            stay = len(doomed) + len(set(changing) - set(known))
            self._then((len(known) - len(doomed), stay))
        else:
            self._later(_POLL_SECONDS, lambda: self._look(known, []))


def delete(
    backend: Backend,
    names: Sequence[ObjectName],
    later: Later,
    then: Callable[[tuple[int, int]], None],
) -> None:
    """Remove those of `names` that `backend` knows; `then` is told how many went, and how many not.

    What is being written just now is removed after that.
    """
    _Deletion(backend, names, later, then).begin()


def _outcome(backend: Backend) -> Cleared:
    left = backend.leftovers
    why = backend.marking.unmarked or (backend.deletes.last_failure if left.stuck else "")
    return Cleared(
        backend.label, not backend.marking.unmarked, left.deleted, left.waiting, left.stuck, why
    )
