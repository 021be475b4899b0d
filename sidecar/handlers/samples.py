"""What the dashboard's charts show: a row of figures every three seconds, for 15 minutes."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from sidecar.handlers.core import Core

SAMPLE_SECONDS = 3.0
_ROWS = 300
Row = tuple[float, ...]


class Samples:
    """The last rows, the oldest dropped. All methods belong to the loop thread."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._began = core.now()
        self._began_at = time.time()
        self._columns = _columns(core)
        self._rows: deque[Row] = deque(maxlen=_ROWS)
        self._taken = 0
        self.sample()  # growth is counted from here

    def sample(self) -> None:
        """Take a row now."""
        self._rows.append((self._age(), *(read() for read in self._columns.values())))
        self._taken += 1

    def since(self, taken: int) -> dict[str, Any]:
        """The rows after the first `taken` that were ever taken, as far as they are kept.

        `age` (of the server) is in seconds, now and in each row. `began_at` (Unix time) also
        tells one life of the server from the next, whose rows are numbered anew.
        """
        new = max(0, min(self._taken - taken, len(self._rows)))
        return {
            "began_at": self._began_at,
            "age": self._age(),
            "sample_seconds": SAMPLE_SECONDS,
            "columns": ["age", *self._columns],
            "taken": self._taken,
            "rows": list(self._rows)[len(self._rows) - new :],
        }

    def _age(self) -> float:
        return round(self._core.now() - self._began, 3)


def _columns(core: Core) -> dict[str, Callable[[], float]]:
    """What a row holds behind the age: sums since the start, and what is in use then (bytes)."""
    telemetry, backends = core.telemetry, core.tiers.backends
    return {
        "lookups": telemetry.lookups_requests.total,
        "requested_tokens": telemetry.lookup_requested_tokens.total,
        "l1_hit_tokens": telemetry.lookup_hit_l1_tokens.total,
        "l2_hit_tokens": telemetry.lookup_hit_l2_tokens.total,
        "refusals": telemetry.refusals.total,
        "store_bytes": lambda: telemetry.transfer_bytes.total("store"),
        "load_bytes": lambda: telemetry.transfer_bytes.total("load"),
        "l1_evicted": telemetry.l1_evicted_chunks.total,
        "l1_no_room": telemetry.l1_allocation_failure_chunks.total,
        "l2_store_bytes": lambda: telemetry.l2_transfer_bytes.total("store"),
        "l2_load_bytes": lambda: telemetry.l2_transfer_bytes.total("load"),
        "l2_dropped": telemetry.l2_dropped_objects.total,
        "l2_corrupt": telemetry.l2_corrupt_objects.total,
        "l1_used_bytes": lambda: core.l1.used_bytes,
        "l2_used_bytes": lambda: sum(backend.catalog.used_bytes for backend in backends),
    }
