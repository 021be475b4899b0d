"""The threads of one adapter, for calls that block."""

import logging
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from sidecar.tiers.base import TierError

log = logging.getLogger(__name__)
T = TypeVar("T")
_Call = tuple[Callable[[], Any], Callable[[Any, TierError | None], None]]


class Threads:
    """`threads` daemon threads; `post` hands a callback to the loop thread.

    Not concurrent.futures: the interpreter would wait at its end for a call that is stuck.
    """

    def __init__(self, name: str, threads: int, post: Callable[[Callable[[], None]], None]) -> None:
        self._post = post
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True)
            for i in range(threads)
        ]
        self.size = threads
        for thread in self._threads:
            thread.start()

    def submit(self, call: Callable[[], T], done: Callable[[T, TierError | None], None]) -> None:
        """Run `call` on a thread, then `done(result, error)` on the loop thread.

        `result` is None if there is an error.
        """
        self._queue.put((call, done))

    def stop(self) -> None:
        """End each thread after what is queued. Does not wait for them."""
        for _ in self._threads:
            self._queue.put(None)

    def alive(self) -> bool:
        """Whether a thread is still at work."""
        return any(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            call, done = item
            result, failure = None, None
            try:
                result = call()
            except TierError as error:
                failure = error
            except Exception as error:
                log.exception("an L2 adapter failed")
                failure = TierError("bug", repr(error))
            self._post(partial(done, result, failure))
            del item, call, done, result, failure
