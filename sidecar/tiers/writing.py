"""What all who write records to a backend do: room before it, and the accounts after it."""

from dataclasses import dataclass, field

from sidecar.tiers.backend import Backend
from sidecar.tiers.base import NoSpace, Relocated, TierError
from sidecar.tiers.epochs import Epoch, Replaced
from sidecar.tiers.names import ObjectName
from sidecar.tiers.tenants import salt_of

_RECORDS_GIVEN_UP = 8


@dataclass(eq=False, slots=True)
class Batch:
    """Objects that were offered together, in the order of their prompt; `left` are under way."""

    backend: Backend
    left: int = 0
    names: list[ObjectName] = field(default_factory=list)

    def begin_all(self) -> None:
        """All that are to come have been added to `left`."""
        if self.left:
            self.backend.telemetry.l2_store_submitted_requests.add(1, self.backend.label)
        else:
            self.backend.catalog.touch_sequence(self.names)

    def end_one(self) -> None:
        self.left -= 1
        if not self.left:
            self.backend.telemetry.l2_store_completed_requests.add(1, self.backend.label)
            # Several threads keep them in any order, and the last that came is the newest.
            self.backend.catalog.touch_sequence(self.names)


def make_room(backend: Backend, name: ObjectName, size: int) -> bool:
    """Evict what must go for a record of `size` bytes; whether it fits then.

    What is over the quota of the tenant goes at the tenant's expense.
    """
    catalog = backend.catalog
    if not catalog.has_quota(name, size):
        backend.evict(catalog.keep_quota(salt_of(name.space), size, backend.busy()))
    # Else nobody need ask what is busy; and what cannot be removed makes no room.
    if not (catalog.fits(size) or catalog.is_stuck):
        backend.evict(catalog.make_room(size, backend.busy()))
    return catalog.fits(size) and catalog.has_quota(name, size)


def check_room(backend: Backend, size: int) -> None:
    """On a thread. Raises NoSpace."""
    room = backend.adapter.room()
    if room is not None and room < size:
        raise NoSpace("floor", f"{room} bytes left")


def give_way(backend: Backend, size: int) -> None:
    """Others fill the disk too: give way to them, so far that the next stores fit."""
    backend.evict(backend.catalog.give_up(_RECORDS_GIVEN_UP * size, backend.busy()))


def not_kept(backend: Backend, size: int, error: TierError) -> str:
    """A record of `size` bytes could not be written; the reason for the metrics."""
    if not isinstance(error, NoSpace):
        return "cleared" if isinstance(error, Replaced | Relocated) else "error"
    give_way(backend, size)
    return "no_space"


def kept(backend: Backend, name: ObjectName, size: int, epoch: Epoch) -> bool:
    """A record is there, in `epoch`; False if it goes with a clear since then."""
    if epoch is not backend.epoch:
        backend.leave(epoch, name, size)
        return False
    backend.catalog.add(name, size)
    backend.on_kept(name)
    return True
