"""Room for one more record in a backend: by its capacity, and by what its disk has left."""

from sidecar.tiers.base import NoSpace
from sidecar.tiers.lane import Lane

_RECORDS_GIVEN_UP = 8


def make_room(lane: Lane, size: int) -> bool:
    """Evict what must go for a record of `size` bytes; whether it fits then."""
    lane.evict(lane.catalog.make_room(size, lane.busy()))
    return lane.catalog.fits(size)


def give_way(lane: Lane, size: int) -> None:
    """Others fill the disk too: give way to them, so far that the next stores fit."""
    lane.evict(lane.catalog.give_up(_RECORDS_GIVEN_UP * size, lane.busy()))


def check_room(lane: Lane, size: int) -> None:
    """On a thread. Raises NoSpace."""
    room = lane.adapter.room()
    if room is not None and room < size:
        raise NoSpace("floor", f"{room} bytes left")
