"""When write-behind may write: not while it would slow down what somebody waits for.

It takes memory bandwidth and cores from the workers' transfers, and can as well be done in
their next pause. Where there are no pauses it goes ahead after a while: freely if there is
enough left, else one object at a time with long pauses between.
"""

import time
from collections.abc import Callable

# How long an object waits for a pause in the transfers.
_PATIENCE_SECONDS = 2.0
# With transfers under way for less of the time than this, nobody notices.
_MUCH = 0.5
# A write slows transfers by less than half while it lasts: so by a few percent in all.
_PAUSES_A_WRITE = 12


class Manners:
    """`busy()` tells that transfers are under way, `busy_share()` for how much of the time."""

    def __init__(self, busy: Callable[[], bool], busy_share: Callable[[], float]) -> None:
        self._busy = busy
        self._busy_share = busy_share
        self._not_before = 0.0
        self.patient = True

    def allow(self, since: float, in_flight: int) -> bool:
        """Whether an object that waits since then may be written, beside `in_flight` others."""
        if not (self.patient and self._busy()):
            return True
        now = time.monotonic()
        if now - since < _PATIENCE_SECONDS:
            return False
        if self._busy_share() < _MUCH:
            return True
        return not in_flight and now >= self._not_before

    def written(self, seconds: float) -> None:
        """A write that took this long has ended."""
        self._not_before = time.monotonic() + _PAUSES_A_WRITE * seconds
