"""What the admin port needs of the rest of the server."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class WireLoop(Protocol):
    """The one thread that owns all state."""

    def call(self, fn: Callable[[], T], timeout: float) -> T:
        """What ``fn`` returns or raises on the loop thread; TimeoutError if it does not answer."""


class Service(Protocol):
    """The state itself. Only ``health`` may be called on another thread than the loop's."""

    def health(self) -> str | None:
        """None, or why the server cannot do its work."""

    def snapshot(self) -> dict[str, Any]:
        """The state as plain values, in the shape that ``status.document`` reads."""

    def clear(self, force: bool) -> None:
        """Drop what is cached, with ``force`` also what is in use."""

    def block_checksums(
        self,
        instance_id: int,
        block_ids: Sequence[int],
        blocks_per_chunk: int,
        layerwise: bool,
    ) -> "Future[dict[str, Any]]":
        """Digests of a worker's blocks, under ``chunk_checksums``, hashed on a copy thread.

        Raises:
            KeyError: no such worker.
            ValueError: ids that it does not have.
        """
