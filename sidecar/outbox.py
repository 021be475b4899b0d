"""Work that is handed to a thread of its own: who hands it over waits for nothing."""

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
_STOP_SECONDS = 2.0


class Outbox(Generic[T]):
    """At most `most` items on their way to the thread that is in `run`, until that takes None."""

    def __init__(self, name: str, most: int, run: Callable[[], None]) -> None:
        self._items: queue.Queue[T | None] = queue.Queue(most)
        self._thread = threading.Thread(target=run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, item: T) -> bool:
        """False if there is no room for it."""
        try:
            self._items.put_nowait(item)
        except queue.Full:
            return False
        return True

    def take(self, seconds: float | None = None) -> T | None:
        """The next one; None at the end. Raises queue.Empty if there is none for so long."""
        return self._items.get(timeout=seconds)

    @property
    def is_empty(self) -> bool:
        return self._items.empty()

    def close(self) -> bool:
        """Let the thread end, within two seconds; whether it has had all and ended."""
        try:
            self._items.put(None, timeout=_STOP_SECONDS)
        except queue.Full:
            return False
        self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()
