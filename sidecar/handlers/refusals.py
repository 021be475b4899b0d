"""Every "no" is counted, and logged so that a flood of them does not flood the log."""

import logging
import time
from collections import Counter

from sidecar.telemetry import Telemetry

log = logging.getLogger(__name__)

_QUIET_SECONDS = 10.0


class Refusals:
    """Counts refused requests by reason; logs one of a kind every ten seconds at most."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.by_reason: Counter[str] = Counter()
        self._telemetry = telemetry
        self._logged: dict[tuple[str, str], float] = {}
        self._unlogged: Counter[tuple[str, str]] = Counter()

    def add(self, operation: str, reason: str, detail: str) -> None:
        """One request for `operation` was answered with its negative."""
        self.by_reason[reason] += 1
        self._telemetry.refusals.add(1, operation, reason)
        kind, now = (operation, reason), time.monotonic()
        if now - self._logged.get(kind, -_QUIET_SECONDS) < _QUIET_SECONDS:
            self._unlogged[kind] += 1
            return
        self._logged[kind] = now
        more = self._unlogged.pop(kind, 0)
        suffix = f" ({more} more like it before)" if more else ""
        log.warning("%s refused, %s: %r%s", operation, reason, detail[:200], suffix)
