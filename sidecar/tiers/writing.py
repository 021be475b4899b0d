"""What all who write records to a backend do: room before it, and the accounts after it."""

from dataclasses import dataclass, field

from sidecar.tiers.base import Moved, NoSpace, TierError
from sidecar.tiers.epochs import Epoch, Replaced
from sidecar.tiers.lane import Lane
from sidecar.tiers.names import ObjectName

_RECORDS_GIVEN_UP = 8


@dataclass(eq=False, slots=True)
class Batch:
    """Objects that were offered together, in the order of their prompt; `left` are under way."""

    lane: Lane
    left: int = 0
    names: list[ObjectName] = field(default_factory=list)

    def begin_all(self) -> None:
        """All that are to come have been added to `left`."""
        if self.left:
            self.lane.telemetry.l2_store_submitted_requests.add(1, self.lane.label)
        else:
            self.lane.catalog.touch_sequence(self.names)

    def end_one(self) -> None:
        self.left -= 1
        if not self.left:
            self.lane.telemetry.l2_store_completed_requests.add(1, self.lane.label)
            # Several threads keep them in any order, and the last that came is the newest.
            self.lane.catalog.touch_sequence(self.names)


def make_room(lane: Lane, size: int) -> bool:
    """Evict what must go for a record of `size` bytes; whether it fits then."""
    # Else nobody need ask what is busy; and what cannot be removed makes no room.
    if not (lane.catalog.fits(size) or lane.catalog.is_stuck):
        lane.evict(lane.catalog.make_room(size, lane.busy()))
    return lane.catalog.fits(size)


def check_room(lane: Lane, size: int) -> None:
    """On a thread. Raises NoSpace."""
    room = lane.adapter.room()
    if room is not None and room < size:
        raise NoSpace("floor", f"{room} bytes left")


def give_way(lane: Lane, size: int) -> None:
    """Others fill the disk too: give way to them, so far that the next stores fit."""
    lane.evict(lane.catalog.give_up(_RECORDS_GIVEN_UP * size, lane.busy()))


def not_kept(lane: Lane, size: int, error: TierError) -> str:
    """A record of `size` bytes could not be written; the reason for the metrics."""
    if not isinstance(error, NoSpace):
        return "cleared" if isinstance(error, Replaced | Moved) else "error"
    give_way(lane, size)
    return "no_space"


def kept(lane: Lane, name: ObjectName, size: int, epoch: Epoch) -> bool:
    """A record is there, in `epoch`; False if it goes with a clear since then."""
    if epoch is not lane.epoch:
        lane.leave(epoch, name, size)
        return False
    lane.catalog.add(name, size)
    lane.on_kept(name)
    return True
