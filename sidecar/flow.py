"""Work that waits, written from top to bottom: coroutines that the loop drives.

A flow runs on the loop thread until it awaits an `Outcome` that is still open. It goes on after
that is set: between two callbacks of the loop, never inside the call that set it. So whoever
sets an outcome in the middle of a step is not called back into.

Not asyncio: its loop would have to be the server's, and a task that is cancelled there takes
what it awaits with it. Here a thread that moves bytes goes on, and can be waited for again.
"""

import logging
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from typing import Any, Generic, TypeVar, cast

log = logging.getLogger(__name__)
T = TypeVar("T")


class Cancelled(Exception):
    """Raised where a flow waits, because nobody wants its result any more; `reason` says why.

    What it waited for is not stopped: a flow that must not let go before that has ended awaits
    it once more.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Outcome(Generic[T]):
    """A result that is not there yet, or an error in its stead. It is set once.

    Any number of flows may await it, before or after.
    """

    __slots__ = ("_error", "_value", "_waiting", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: Exception | None = None
        self._waiting: list[Callable[[], None]] = []  # each of them only puts on a list

    def set(self, value: T) -> None:
        """Here it is. Runs nobody: who waits goes on later."""
        self._end(value, None)

    def fail(self, error: Exception) -> None:
        """There is none; who waits gets `error` raised."""
        self._end(None, error)

    def result(self) -> T:
        """The value, once it is set. Raises what it failed with."""
        if not self.done:
            raise RuntimeError("an outcome that is not there yet")
        if self._error is not None:
            raise self._error
        return cast("T", self._value)

    def _end(self, value: T | None, error: Exception | None) -> None:
        if self.done:
            raise RuntimeError("an outcome was set twice")
        self.done, self._value, self._error = True, value, error
        waiting, self._waiting = self._waiting, []
        for wake in waiting:
            wake()

    def _wake_when_done(self, wake: Callable[[], None]) -> None:
        if self.done:
            wake()
        else:
            self._waiting.append(wake)

    def _forget(self, wake: Callable[[], None]) -> None:
        if wake in self._waiting:
            self._waiting.remove(wake)

    def __await__(self) -> Generator["Outcome[Any]", None, T]:
        if not self.done:
            yield self
        return self.result()


class Signal:
    """What happens again and again, for those who wait for the next time."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next: Outcome[None] = Outcome()

    def next(self) -> Outcome[None]:
        """An outcome that is set the next time."""
        return self._next

    def fire(self) -> None:
        """It happens now. Runs nobody: who waits goes on later."""
        now, self._next = self._next, Outcome()
        now.set(None)


class Reminder:
    """What a timer is to call, until it is forgotten: then the timer keeps nothing in memory."""

    __slots__ = ("_callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    def __call__(self) -> None:
        if self._callback is not None:
            self._callback()

    def forget(self) -> None:
        self._callback = None


class Flow(Outcome[T]):
    """A coroutine under way; as an outcome it is what the coroutine returns or raises."""

    __slots__ = ("_awaits", "_cancelled", "_coroutine", "_flows", "_queued")

    def __init__(self, coroutine: Coroutine[Outcome[Any], None, T], flows: "Flows") -> None:
        super().__init__()
        self._coroutine = coroutine
        self._flows = flows
        self._awaits: Outcome[Any] | None = None
        self._cancelled: Cancelled | None = None
        self._queued = False

    def cancel(self, reason: str) -> None:
        """Raise Cancelled where the flow waits, or will wait next. Once it has ended: nothing."""
        if not self.done and self._cancelled is None:
            self._cancelled = Cancelled(reason)
            if self._awaits is not None:
                self._wake()

    def stop(self, reason: str) -> None:
        """Cancel it at once: it runs inside this call, to its next wait or its end."""
        if self.done:
            return
        if self._awaits is None:
            raise RuntimeError("a flow cannot stop itself")
        self._cancelled = Cancelled(reason)
        self._advance()

    def _wake(self) -> None:
        if not self._queued:
            self._queued = True
            self._flows._ready.append(self._resume)

    def _resume(self) -> None:
        self._queued = False
        # It may have been cancelled, and wait for something else since then.
        if self._awaits is not None and (self._cancelled is not None or self._awaits.done):
            self._advance()

    def _advance(self) -> None:
        """Run to the next outcome that is open, or to the end."""
        try:
            awaits = self._step()
        except StopIteration as end:
            self.set(end.value)
        except Exception as failure:
            if not (self._waiting or isinstance(failure, Cancelled)):
                log.exception("%s failed", getattr(self._coroutine, "__qualname__", "a flow"))
                self._flows.on_failure(repr(failure))
            self.fail(failure)
        else:
            self._awaits = awaits
            awaits._wake_when_done(self._wake)
            if self._cancelled is not None:  # by itself, or by what it called
                self._wake()

    def _step(self) -> Outcome[Any]:
        """Raises StopIteration at the end, and what the coroutine raises."""
        error, self._cancelled, self._awaits = self._cancelled, None, None
        return self._coroutine.send(None) if error is None else self._coroutine.throw(error)


class Flows:
    """The flows of one loop, and those that can go on. Loop thread only.

    `later(seconds, fn)` is a timer of the loop, which calls `run` between two callbacks.
    `on_failure(detail)` is called when something raises that nobody waits for.
    """

    def __init__(self, later: Callable[[float, Callable[[], None]], None]) -> None:
        self._later = later
        self.on_failure: Callable[[str], None] = lambda detail: None
        self._ready: deque[Callable[[], None]] = deque()

    def start(self, coroutine: Coroutine[Outcome[Any], None, T]) -> Flow[T]:
        """Begin a flow. It runs at once, like a call, as far as it can without waiting."""
        flow = Flow(coroutine, self)
        flow._advance()
        return flow

    def run(self) -> None:
        """Go on with all flows that can, until none can."""
        while self._ready:
            try:
                self._ready.popleft()()
            except Exception as error:
                log.exception("a callback that waited for an outcome failed")
                self.on_failure(repr(error))

    def when(self, outcome: Outcome[Any], callback: Callable[[], None]) -> None:
        """Run `callback` once `outcome` is set: as a flow goes on, never at once."""
        outcome._wake_when_done(lambda: self._ready.append(callback))

    def turn(self) -> Outcome[None]:
        """An outcome that is set when whoever runs now, and what is ready already, has run."""
        outcome: Outcome[None] = Outcome()
        self._ready.append(lambda: outcome.set(None))
        return outcome

    def sleep(self, seconds: float) -> Outcome[None]:
        """An outcome that is set after so many seconds."""
        outcome: Outcome[None] = Outcome()
        self._later(seconds, lambda: outcome.set(None))
        return outcome


async def first(*outcomes: Outcome[Any]) -> None:
    """Wait until one of these is set."""
    one: Outcome[None] = Outcome()

    def wake() -> None:
        if not one.done:
            one.set(None)

    for outcome in outcomes:
        outcome._wake_when_done(wake)
    try:
        await one
    finally:
        # One that is never set, or late, would collect them.
        for outcome in outcomes:
            outcome._forget(wake)


async def ended(outcome: Outcome[Any]) -> None:
    """Wait until it is set, for good or bad. No cancellation ends this wait."""
    while not outcome.done:
        with suppress(Cancelled):
            await first(outcome)


def called_back(begin: Callable[[Callable[[T], None]], object]) -> Outcome[T]:
    """The outcome of what `begin(callback)` begins, and which calls back once, with a result."""
    outcome: Outcome[T] = Outcome()
    begin(outcome.set)
    return outcome


class Gate:
    """Lets `width` flows through at once, in the order in which they came: `async with gate`."""

    def __init__(self, width: int) -> None:
        self._free = width
        self._waiting: deque[Outcome[None]] = deque()

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn: Outcome[None] = Outcome()
        self._waiting.append(turn)
        try:
            await turn
        except Cancelled:
            if turn.done:
                self._leave()
            else:
                self._waiting.remove(turn)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._waiting:
            self._waiting.popleft().set(None)
        else:
            self._free += 1
