"""An engine at the native door, made by hand: a scheduler connection, a worker process a rank."""

from __future__ import annotations

import hashlib
import mmap
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from tests.support.raw import RawClient

OBJECT_BYTES = 3 * 4096
MISS, BELOW = -1, -2


def block_hash(number: int) -> bytes:
    return hashlib.sha256(number.to_bytes(8, "big")).digest()


class Member:
    """A worker process: its connection, and its mapping of the arena."""

    def __init__(self, url: str, engine: str, rank: int, ranks: int, **more: Any) -> None:
        self.client = RawClient(url)
        self.ask = {
            "version": 1, "engine": engine, "incarnation": secrets.token_bytes(16), "rank": rank,
            "ranks": ranks, "object_bytes": OBJECT_BYTES, "layout": bytes([rank]) * 32, **more,
        }  # fmt: skip
        self.arena: np.ndarray[Any, np.dtype[np.uint8]] | None = None
        self._map: mmap.mmap | None = None
        self.joined: dict[str, Any] = {}

    def join(self) -> dict[str, Any]:
        self.joined = self.client.call("native_join", self.ask)
        return self.joined

    def map(self) -> None:
        fd = os.open(f"/dev/shm/{self.joined['shm_name']}", os.O_RDWR)
        try:
            self._map = mmap.mmap(fd, self.joined["arena_bytes"])
        finally:
            os.close(fd)
        self.arena = np.frombuffer(self._map, np.uint8)

    def say_mapped(self) -> bool:
        told = {"member": self.joined["member"], "server": self.joined["server"]}
        return bool(self.client.call("native_mapped", told))

    def start(self) -> Member:
        assert self.join()["member"], self.joined
        self.map()
        assert self.say_mapped()
        return self

    def end_process(self) -> None:
        """As the kernel sees it: the mapping goes, and the connection."""
        self.arena = None
        if self._map is not None:
            self._map.close()
            self._map = None
        self.client.close()


class Engine:
    """A scheduler process, and workers that copy what it plans."""

    def __init__(
        self, url: str, ranks: int = 1, groups: int = 1, object_bytes: int = OBJECT_BYTES,
        **more: Any,
    ) -> None:  # fmt: skip
        self.url, self.object_bytes = url, object_bytes
        self.client = RawClient(url)
        self.ask = {
            "version": 1, "engine": secrets.token_hex(8), "incarnation": secrets.token_bytes(16),
            "model": "native-model", "ranks": ranks, "groups": groups, "chunk_tokens": 16,
            "object_bytes": object_bytes, "identity": bytes(32), "events": False, **more,
        }  # fmt: skip
        self.members = [
            Member(url, self.ask["engine"], rank, ranks, object_bytes=object_bytes)
            for rank in range(ranks)
        ]
        self.session = 0

    def attach(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.client.call("native_attach", self.ask)
        self.session = answer["session"]
        return answer

    def start(self) -> Engine:
        for member in self.members:
            member.start()
        assert self.attach()["ready"]
        return self

    def call(self, operation: str, **ask: Any) -> Any:
        return self.client.call(f"native_{operation}", {"session": self.session, **ask})

    def reserve(self, count: int) -> list[int]:
        slots: list[int] = self.call("reserve", count=count)
        return slots

    def write(self, slot: int, number: int) -> None:
        """What object `number` holds."""
        self.bytes_at(slot)[:] = self._content(number)

    def store(self, request: str, *numbers: int, group: int = 0) -> int:
        """All of it: reserve, write, publish; how many are visible then."""
        slots = self.reserve(len(numbers))
        for slot, number in zip(slots, numbers, strict=True):
            self.write(slot, number)
        return self.publish(request, numbers, slots, group)

    def publish(
        self, request: str, numbers: Sequence[int], slots: Sequence[int], group: int = 0
    ) -> int:
        items = [(group, block_hash(n), s) for n, s in zip(numbers, slots, strict=True)]
        count: int = self.call("publish", request=request, items=items)
        return count

    def find(self, request: str, *numbers: int, budget_ms: int = 10_000, **more: Any) -> list[int]:
        """The slots of one group's lookup; the bytes of each hit are checked."""
        hashes = [block_hash(number) for number in numbers]
        group = {"group": 0, "hashes": hashes, "windowed": False, "load": False, **more}
        slots: list[int]
        [slots] = self.call("lookup", request=request, budget_ms=budget_ms, groups=[group])
        for slot, number in zip(slots, numbers, strict=True):
            if slot >= 0:
                assert (self.bytes_at(slot) == self._content(number)).all(), (
                    f"object {number} is wrong"
                )
        return slots

    def finish(self, *requests: str, used: bool = True) -> None:
        assert self.call("finish", requests=[(request, used) for request in requests])

    def hits(self, request: str, *numbers: int, **more: Any) -> int:
        """How many objects a lookup finds, of which nothing is kept."""
        found = sum(slot >= 0 for slot in self.find(request, *numbers, **more))
        self.finish(request)
        return found

    def end_processes(self) -> None:
        self.client.close()
        for member in self.members:
            member.end_process()

    def bytes_at(self, slot: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        arena = self.members[0].arena
        assert arena is not None
        return arena[slot * 4096 : slot * 4096 + self.object_bytes]

    def _content(self, number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Of an object, in this engine's eyes."""
        seed = block_hash(number) + self.ask["identity"]
        return np.resize(np.frombuffer(seed, np.uint8), self.object_bytes)


@contextmanager
def engines(url: str, count: int = 1, **more: Any) -> Iterator[list[Engine]]:
    """So many engines that are ready; by default of a kind of their own."""
    more = {"identity": secrets.token_bytes(32), **more}
    with ExitStack() as stack:
        started = []
        for _ in range(count):
            engine = Engine(url, **more)
            stack.callback(engine.end_processes)
            started.append(engine.start())
        yield started
