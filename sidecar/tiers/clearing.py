"""What came of a clear or of deletions, told when it is known: what lasts, what is still there."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sidecar.tiers.lane import Lane
from sidecar.tiers.names import ObjectName

# A clear is answered when it lasts; if it does not yet, after this.
_MARK_SECONDS = 5.0
# Objects that are out of sight need not be gone: the answer tells how many are not.
_DELETION_SECONDS = 1.0
_POLL_SECONDS = 0.01


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
    lanes: Sequence[Lane], later: Callable[[float, Callable[[], None]], None],
    then: Callable[[list[Cleared]], None],
) -> None:  # fmt: skip
    """Tell `then` what came of a clear of all `lanes` that has just begun."""
    began = time.monotonic()

    def look() -> None:
        elapsed = time.monotonic() - began
        marked = not any(lane.marking.unmarked for lane in lanes)
        if (elapsed < _MARK_SECONDS and not marked) or (
            elapsed < _DELETION_SECONDS and any(lane.clearing for lane in lanes)
        ):
            later(_POLL_SECONDS, look)
        else:
            then([_outcome(lane) for lane in lanes])

    look()


def delete(
    lane: Lane, names: Sequence[ObjectName], later: Callable[[float, Callable[[], None]], None],
    then: Callable[[tuple[int, int]], None],
) -> None:  # fmt: skip
    """Remove those of `names` that `lane` knows; tell `then` how many went, and how many did not.

    What is being written just now is removed after that.
    """
    deadline = time.monotonic() + _MARK_SECONDS

    def begin() -> None:
        if any(map(lane.removal.is_changing, names)) and time.monotonic() < deadline:
            later(_POLL_SECONDS, begin)
            return
        known = [name for name in names if name in lane.catalog]
        lane.delete(known)
        look(known, [name for name in names if lane.removal.is_changing(name)])

    def look(known: list[ObjectName], changing: list[ObjectName]) -> None:
        doomed = [lane.catalog.doomed[name] for name in known if name in lane.catalog.doomed]
        if all(each.failed for each in doomed) or time.monotonic() >= deadline:
            stay = len(doomed) + len(set(changing) - set(known))
            then((len(known) - len(doomed), stay))
        else:
            later(_POLL_SECONDS, lambda: look(known, []))

    begin()


def _outcome(lane: Lane) -> Cleared:
    left = lane.leftovers
    why = lane.marking.unmarked or (lane.deletes.last_failure if left.stuck else "")
    return Cleared(
        lane.label, not lane.marking.unmarked, left.deleted, left.waiting, left.stuck, why
    )
