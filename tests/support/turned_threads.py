"""L2's threads, turned by hand: a call runs, and its result arrives, when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from sidecar.tiers.base import TierError
from sidecar.tiers.threads import Threads

Done = Callable[[Any, TierError | None], None]


@dataclass(eq=False)
class Call:
    """One call of an adapter that waits for its thread, or has run."""

    run: Callable[[], Any]
    done: Done


class TurnedThreads:
    """In place of all `Threads`, while it is entered.

    What an adapter puts into `writes` while it runs is done once more when the result arrives:
    until then a thread may write to what it was given.
    """

    def __init__(self) -> None:
        self.waiting: list[Call] = []
        self.ended: list[Callable[[], None]] = []
        self.writes: list[Callable[[], None]] = []
        self._patches = ExitStack()

    def __enter__(self) -> TurnedThreads:
        def init(workers: Any, name: str, threads: int, post: object) -> None:
            workers.size = threads

        def submit(workers: Any, call: Callable[[], Any], done: Done) -> None:
            self.waiting.append(Call(call, done))

        in_place = {
            "__init__": init,
            "submit": submit,
            "stop": lambda workers: None,
            "alive": lambda workers: False,
        }
        for name, method in in_place.items():
            self._patches.enter_context(patch.object(Threads, name, method))
        return self

    def __exit__(self, *_: object) -> None:
        self._patches.close()

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
