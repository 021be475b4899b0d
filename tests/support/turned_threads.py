"""L2's threads, turned by hand: a call runs, and its result arrives, when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from sidecar.tiers.base import TierError

Done = Callable[[Any, TierError | None], None]


@dataclass(eq=False)
class Call:
    """One call of an adapter that waits for its thread, or has run."""

    run: Callable[[], Any]
    done: Done
    post: Callable[[Callable[[], None]], None]


class TurnedThreads:
    """In place of all `Workers`, while it is entered.

    What an adapter puts into `writes` while it runs is done once more when the result arrives:
    until then a thread may write to what it was given.
    """

    def __init__(self) -> None:
        self.waiting: list[Call] = []
        self.ended: list[Callable[[], None]] = []
        self.writes: list[Callable[[], None]] = []
        self._patches = [
            patch(f"sidecar.tiers.{module}.Workers", self._workers)
            for module in ("lane", "scanning")
        ]

    def __enter__(self) -> TurnedThreads:
        for each in self._patches:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._patches:
            each.stop()

    def run(self, index: int) -> None:
        """Let a call do its work; its result is under way then."""
        call = self.waiting.pop(index)
        result, failure = None, None
        try:
            result = call.run()
        except TierError as error:
            failure = error
        writes, self.writes[:] = list(self.writes), []

        def end() -> None:
            for write in writes:
                write()
            call.done(result, failure)

        self.ended.append(end)

    def arrive(self, index: int) -> None:
        """On the loop thread: the result of a call that has run."""
        self.ended.pop(index)()

    def _workers(
        self, name: str, threads: int, post: Callable[[Callable[[], None]], None]
    ) -> _Workers:
        return _Workers(self, threads, post)


class _Workers:
    def __init__(
        self, owner: TurnedThreads, threads: int, post: Callable[[Callable[[], None]], None]
    ) -> None:
        self.size = threads
        self._owner, self._post = owner, post

    def submit(self, call: Callable[[], Any], done: Done) -> None:
        self._owner.waiting.append(Call(call, done, self._post))

    def stop(self) -> None:
        pass

    def alive(self) -> bool:
        return False
