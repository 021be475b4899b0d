"""Watermark eviction: make room ahead of need, a few objects a turn.

A store evicts on demand what it needs in any case; this keeps that off its path.
"""

from collections.abc import Callable

from sidecar.handlers.core import Core

_OBJECTS_A_TURN = 128


def count_evicted(core: Core) -> None:
    """Count what has been evicted since the last call."""
    telemetry = core.telemetry
    for evicted in core.l1.take_evicted():
        telemetry.l1_evicted_chunks.add(1)
        telemetry.l1_chunk_lifetime.record(evicted.lifetime)
        telemetry.l1_chunk_idle_before_evict.record(evicted.idle)


class Eviction:
    """Starts when the L1 is fuller than the trigger watermark, frees `eviction_ratio` of it."""

    def __init__(self, core: Core, post: Callable[[Callable[[], None]], None]) -> None:
        self._core = core
        self._post = post
        self._target: int | None = None

    def check(self) -> None:
        """To be called after every store."""
        l1, config = self._core.l1, self._core.config
        self._core.telemetry.l1_eviction_loop_ticks.add(1)
        count_evicted(self._core)
        if self._target is not None:
            return
        if l1.used_bytes > config.eviction_trigger_watermark * l1.capacity:
            self._core.telemetry.l1_eviction_loop_triggered.add(1)
            self._target = l1.used_bytes - int(config.eviction_ratio * l1.capacity)
            self._post(self._turn)

    def keep_quotas(self) -> None:
        """Evict what tenants have beyond a quota that was lowered, a few objects a turn."""
        evicted = self._core.l1.evict_over_quota(_OBJECTS_A_TURN)
        count_evicted(self._core)
        if evicted == _OBJECTS_A_TURN:
            self._post(self.keep_quotas)

    def _turn(self) -> None:
        assert self._target is not None
        evicted = self._core.l1.evict(_OBJECTS_A_TURN, self._target)
        count_evicted(self._core)
        if evicted == _OBJECTS_A_TURN:
            self._post(self._turn)
        else:
            self._target = None
