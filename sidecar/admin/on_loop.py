"""Questions of the admin port to the one thread that owns all state."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sidecar.loop import Loop

LOOP_SECONDS = 5.0
T = TypeVar("T")


class OnLoop:
    """Runs functions on the wire thread, for the threads of HTTP."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop

    async def __call__(self, fn: Callable[[], T]) -> T:
        """What `fn` returns or raises; TimeoutError if the wire thread does not answer."""
        return await asyncio.to_thread(self._loop.call, fn, timeout=LOOP_SECONDS)
