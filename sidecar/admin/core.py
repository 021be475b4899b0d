"""What the admin port needs of the rest of the server."""

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
# What a function returns or raises on the wire thread; TimeoutError if that does not answer.
OnLoop = Callable[[Callable[[], Any]], Awaitable[Any]]


class WireLoop(Protocol):
    """The one thread that owns all state."""

    def call(self, fn: Callable[[], T], timeout: float) -> T:
        """What ``fn`` returns or raises on the loop thread; TimeoutError if it does not answer."""


class Listing(Protocol):
    """What one L2 adapter has, the least recently used first."""

    @property
    def adapter(self) -> str: ...
    @property
    def shared(self) -> bool: ...
    @property
    def names(self) -> Sequence[Any]: ...
    def size_of(self, name: Any) -> int:
        """The record's size in bytes, 0 if it is there no more. Any thread."""


class Objects(Protocol):
    """Objects one by one, by their keys: (hash, model name, kv_rank, cache_salt).

    KeyError for an adapter that is not there, LookupError if there is none at all.
    """

    def listing(self, adapter: str | None) -> Listing:
        """All objects of one adapter, by default the first."""

    def key_of(self, name: Any) -> tuple[bytes, str, int, str] | None:
        """The key behind a name of a listing, if the name tells it. Any thread."""

    def delete_from_l2(
        self, keys: Sequence[tuple[bytes, str, int, str]], adapter: str | None
    ) -> "Future[tuple[int, int]]":
        """How many of these went, and how many could not be removed."""

    def delete_from_l1(
        self, keys: Sequence[tuple[bytes, str, int, str]], force: bool
    ) -> tuple[int, int]:
        """How many of these went, and how many somebody holds."""


class Cleared(Protocol):
    """One L2 adapter after a clear; ``detail`` says why something could not be done."""

    @property
    def adapter(self) -> str: ...
    @property
    def lasts(self) -> bool:
        """Whether it holds for others, and after a restart."""

    @property
    def deleted(self) -> int: ...
    @property
    def deleting(self) -> int: ...
    @property
    def undeletable(self) -> int: ...
    @property
    def detail(self) -> str: ...


class Job(Protocol):
    """A prefetch; ``found_keys`` is None while it is under way."""

    total_keys: int
    found_keys: int | None


class Prefetches(Protocol):
    """From L2 into L1, ahead of need."""

    def hashes(self, token_ids: Sequence[int]) -> list[bytes]:
        """Of the whole chunks of a sequence. ValueError for too many tokens. Any thread."""

    def submit(self, model_name: str, world_size: int, hashes: list[bytes], cache_salt: str) -> str:
        """Its id. LookupError for an unknown model, ValueError for bad names."""

    def take(self, request_id: str) -> Job:
        """KeyError for an unknown id. What has ended is told once."""


class History(Protocol):
    """The figures of the last minutes."""

    def since(self, taken: int) -> dict[str, Any]:
        """Columns, and the rows after the first ``taken``. Plain values."""


class Service(Protocol):
    """The state itself. Only ``health`` may be called on another thread than the loop's."""

    @property
    def history(self) -> History: ...
    @property
    def objects(self) -> Objects: ...
    @property
    def prefetches(self) -> Prefetches: ...

    def health(self) -> str | None:
        """None, or why the server cannot do its work."""

    def snapshot(self) -> dict[str, Any]:
        """The state as plain values, in the shape that ``status.document`` reads."""

    def problems(self) -> list[str]:
        """What of the L1's accounts is not true, one line each."""

    def clear(self, tiers: Sequence[str], force: bool) -> "Future[list[Any]]":
        """Drop what is cached in ``tiers`` (l1, l2), with ``force`` also what was promised.

        What came of it in each L2 adapter, if that was among them.
        """

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
            ValueError: ids that it does not have, or one of them twice.
            RuntimeError: others' blocks are being hashed.
        """
