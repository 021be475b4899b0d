"""Which epochs of the backends the objects of the L1 belong to.

Others may clear a backend while nobody here looks, and an L1 may outlive its server. So the marks
are read before anything is served, and what an earlier server has left counts only if all of them
are those that it has written down. Where a mark cannot be read it is the same with what is stored
until then: it may be older than a clear.
"""

import logging
import time
from collections.abc import Callable, Sequence

from sidecar.cache.l1 import L1
from sidecar.tiers.backend import Backend

log = logging.getLogger(__name__)
_LEARN_SECONDS = 3.0
_POLL_SECONDS = 0.01


class KnownEpochs:
    """Of all `backends`, in the index of a kept L1. `clear` is called for what is in doubt.

    Loop thread only; `learn` and `doubt` before the loop runs.
    """

    def __init__(self, backends: Sequence[Backend], l1: L1, clear: Callable[[], None]) -> None:
        self._backends = backends
        self._l1 = l1
        self._clear = clear
        self._unread: set[Backend] = set()

    def learn(self) -> None:
        """Read the marks, for a bounded time. Nothing is stored yet."""
        deadline = time.monotonic() + _LEARN_SECONDS
        for backend in self._backends:
            backend.marking.learn(deadline)
        while self._unknown() and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        self._unread = self._unknown()

    def doubt(self, epochs: Sequence[str]) -> str:
        """Why objects that belong to `epochs` may have been cleared; "" if they cannot."""
        for backend in self._backends:
            if backend.epoch.tag is None:
                return f"L2 {backend.label} cannot be read, and may have been cleared since"
            if backend.epoch.tag not in epochs:
                return f"L2 {backend.label} was cleared since, or is new"
        return ""

    def tick(self) -> None:
        """Once a second, and at the start: write down what a successor has to know."""
        read = self._unread - self._unknown()
        if read:
            log.warning("what was stored before the marks of L2 could be read is given up")
            self._unread -= read
            self._clear()
        tags = (backend.epoch.tag for backend in self._backends)
        self._l1.journal.epochs([tag for tag in tags if tag is not None])

    def _unknown(self) -> set[Backend]:
        return {backend for backend in self._backends if backend.epoch.tag is None}
