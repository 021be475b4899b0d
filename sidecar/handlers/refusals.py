"""Every "no" is counted, and logged so that a flood of them does not flood the log."""

import logging
import time
from collections import Counter
from dataclasses import dataclass

from sidecar.telemetry import Telemetry

log = logging.getLogger(__name__)

_QUIET_SECONDS = 10.0
_LONGEST_DETAIL = 200


@dataclass(slots=True)
class Refusal:
    """The refusals of one operation for one reason: how many, and the latest of them.

    `at` is when that was, on the cache's clock. `detail` may hold what a client sent.
    """

    operation: str
    reason: str
    count: int = 0
    detail: str = ""
    at: float = 0.0
    logged_at: float = -_QUIET_SECONDS
    unlogged: int = 0


class Refusals:
    """Counts refused requests by reason; logs one of a kind every ten seconds at most.

    The latest of each kind is kept, so that a flood of one kind hides no other. Operations and
    reasons are words of the server's own, so there are few kinds.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self.by_reason: Counter[str] = Counter()
        self._telemetry = telemetry
        self._kinds: dict[tuple[str, str], Refusal] = {}

    def add(self, operation: str, reason: str, detail: str) -> None:
        """One request for `operation` was answered with its negative."""
        self.by_reason[reason] += 1
        self._telemetry.refusals.add(1, operation, reason)
        kind = self._kinds.setdefault((operation, reason), Refusal(operation, reason))
        kind.count += 1
        kind.detail, kind.at = detail[:_LONGEST_DETAIL], time.monotonic()
        self._log(kind)

    def latest(self) -> list[Refusal]:
        """One for each kind, the latest first."""
        return sorted(self._kinds.values(), key=lambda kind: kind.at, reverse=True)

    def _log(self, kind: Refusal) -> None:
        if kind.at - kind.logged_at < _QUIET_SECONDS:
            kind.unlogged += 1
            return
        suffix = f" ({kind.unlogged} more like it before)" if kind.unlogged else ""
        kind.logged_at, kind.unlogged = kind.at, 0
        log.warning("%s refused, %s: %r%s", kind.operation, kind.reason, kind.detail, suffix)
