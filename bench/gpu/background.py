"""Something that goes on in a process of its own while something else is measured."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from bench.common import LIMIT, STOP_LIMIT, BenchError, Span, unlink_segments

Step = Callable[[], None]
Work = Callable[..., AbstractContextManager[Step]]
# Not forks: lmcache asks CUDA for its GPUs when it is imported, and CUDA does not survive a fork.
PROCESSES = multiprocessing.get_context("spawn")
_WARM_UP = 3


class Background:
    """Takes one step of `work(*arguments)` after another, within a `with` block."""

    def __init__(self, work: Work, *arguments: Any) -> None:
        self._pipe, self._theirs = PROCESSES.Pipe()
        self._process = PROCESSES.Process(
            target=_child, args=(self._theirs, work, arguments), daemon=True
        )

    def __enter__(self) -> Self:
        """Returns when it is under way. Raises BenchError."""
        self._process.start()
        self._theirs.close()
        try:
            self._receive()
        except BaseException:
            self.kill()
            raise
        return self

    def during(self, seconds: float) -> list[Span]:
        """The steps that began in the next `seconds`. Raises BenchError."""
        self.steps()
        time.sleep(seconds)
        return self.steps()

    def steps(self) -> list[Span]:
        """Those since it was last asked, in order. Raises BenchError."""
        self._pipe.send(True)
        spans: list[Span] = self._receive()
        return spans

    def kill(self) -> None:
        """As a crash would; returns when the process is gone."""
        self._process.kill()
        self._process.join(STOP_LIMIT)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._pipe.send(False)
        self._process.join(STOP_LIMIT)
        self.kill()
        assert self._process.pid is not None
        unlink_segments(self._process.pid)
        self._pipe.close()

    def _receive(self) -> Any:
        if not self._pipe.poll(LIMIT):
            raise BenchError(f"a process in the background was silent for {LIMIT:.0f} s")
        try:
            return self._pipe.recv()
        except (EOFError, OSError):
            raise BenchError("a process in the background died") from None


def _child(pipe: Connection, work: Work, arguments: tuple[Any, ...]) -> None:
    with work(*arguments) as step, suppress(EOFError):
        for _ in range(_WARM_UP):
            step()
        pipe.send(None)
        spans: list[Span] = []
        while True:
            if pipe.poll():
                if not pipe.recv():
                    return
                pipe.send(spans)
                spans = []
            start = time.monotonic()
            step()
            spans.append(Span(start, time.monotonic()))
