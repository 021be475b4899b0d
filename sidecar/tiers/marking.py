"""A backend's work on the mark of its backend: written at a clear, and read once in a while."""

import logging
import time
from collections.abc import Callable
from functools import partial

from sidecar.tiers.base import TierError
from sidecar.tiers.calls import Calls, Side
from sidecar.tiers.epochs import CHECKED_SECONDS, Epoch

log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.1


class Marking:
    """Of one backend. `epoch()` is the one that counts here. Loop thread only.

    `side` is its own: that the mark can be read and written says nothing of records.
    """

    def __init__(self, label: str, calls: Calls, side: Side, epoch: Callable[[], Epoch]) -> None:
        self.unmarked = ""  # why the last clear would not survive this process, if it would not
        self.publishing = False
        self._label = label
        self._calls = calls
        self._side = side
        self._epoch = epoch
        self._next_check = 0.0

    def learn(self, deadline: float) -> None:
        """Read it until it is known which epoch counts, in spite of failures before `deadline`."""
        self._calls.run(self._side, partial(_learn, self._epoch(), deadline), lambda _, error: None)

    def publish(self) -> None:
        """Make a new epoch the one that the backend names."""
        self.unmarked = self.unmarked or "the backend has not answered yet"
        if self.publishing:
            return  # then it is this one's turn
        epoch, self.publishing = self._epoch(), True

        def published(_: None, error: TierError | None) -> None:
            self.publishing = False
            if epoch is not self._epoch():
                if self.unmarked:
                    self.publish()
            elif error is None:
                self.unmarked = ""
            else:
                log.error("L2 %s: a clear is not durable yet: %s", self._label, error)
                self.unmarked = str(error)

        self._calls.run(self._side, epoch.publish, published)

    def tick(self, now: float) -> None:
        """Write it if that has failed. Else read it: where all is known, nobody else does."""
        if not self._side.breaker.allows():
            return
        if self.unmarked:
            self.publish()
        elif now >= self._next_check:
            self._next_check = now + CHECKED_SECONDS / 2
            self._calls.run(self._side, self._epoch().check, lambda _, error: None)

    def stop(self) -> None:
        if self.unmarked:
            log.error(
                "L2 %s: the clear is lost, what it hid may be found again: %s",
                self._label,
                self.unmarked,
            )


def _learn(epoch: Epoch, deadline: float) -> None:
    """Raises TierError."""
    while True:
        try:
            epoch.check()
            return
        except TierError:
            if time.monotonic() + _RETRY_SECONDS > deadline:
                raise
        time.sleep(_RETRY_SECONDS)
