"""A backend that fails is left alone for a while, then tried with one call."""

from collections.abc import Callable

_FAILURES_TO_OPEN = 3
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 1.0, 60.0


class Breaker:
    """Counts a backend's failures in a row. `clock()` in seconds.

    closed: all calls pass. open: none does, until a pause has passed; each pause is twice as
    long as the one before. half-open: one call passes, its outcome decides.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._pause = _FIRST_PAUSE_SECONDS
        self._open_until: float | None = None
        self._probing = False
        self.last_failure = ""

    @property
    def state(self) -> str:
        """closed, open or half-open."""
        if self._open_until is None:
            return "closed"
        return "open" if self._clock() < self._open_until else "half-open"

    def allows(self) -> bool:
        """Whether a call would pass now."""
        return self.state == "closed" or (self.state == "half-open" and not self._probing)

    def begin(self) -> None:
        """A call that `allows` let pass begins."""
        self._probing = self._probing or self.state == "half-open"

    def succeeded(self) -> None:
        """A call ended well: whatever was wrong is over."""
        self._failures = 0
        self._pause = _FIRST_PAUSE_SECONDS
        self._open_until = None
        self._probing = False

    def failed(self, why: str, hopeless: bool = False) -> bool:
        """A call failed; whether that cut the backend off. If it is `hopeless`, once is enough."""
        self.last_failure = why
        self._failures += _FAILURES_TO_OPEN if hopeless else 1
        was_probe, self._probing = self._probing, False
        if self._failures < _FAILURES_TO_OPEN or (self._open_until is not None and not was_probe):
            return False
        self._open_until = self._clock() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        return True
