"""Records in this process's own memory, for tests and demos."""

import threading
import time
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from msgspec import Meta

from sidecar.tiers.base import Adapter, Bytes, Corrupt, Found, Missing, NoSpace, batches
from sidecar.tiers.names import ObjectName
from sidecar.tiers.settings import AdapterSettings, Positive

MOCK = "tests.support.mock_adapter:MockSettings"  # as --l2-adapter names it
_QUARANTINED = 16  # objects


class MockSettings(AdapterSettings, frozen=True, kw_only=True):
    """Memory of the server itself, for tests: gone with it."""

    max_size_gb: Annotated[Positive | None, Meta(description="GiB; without it no limit")] = None
    mock_bandwidth_gb: Annotated[
        Positive | None, Meta(description="GiB/s of one transfer; without it no limit")
    ] = None

    def build(self) -> Adapter:
        return _Mock(self)


class _Mock:
    shared = False

    def __init__(self, settings: MockSettings) -> None:
        self._limit = None if settings.max_size_gb is None else int(settings.max_size_gb * 2**30)
        bandwidth = settings.mock_bandwidth_gb
        self._seconds_a_byte = 0.0 if bandwidth is None else 1 / (bandwidth * 2**30)
        self._lock = threading.Lock()
        self._kept: dict[ObjectName, tuple[bytes, float]] = {}
        self._quarantine: dict[ObjectName, tuple[bytes, float]] = {}
        self._bytes = 0
        self._mark = ""

    def open(self, arena: Bytes) -> None:
        pass

    def close(self) -> None:
        pass

    def store(self, name: ObjectName, record: Bytes) -> None:
        time.sleep(record.nbytes * self._seconds_a_byte)
        with self._lock:
            before = self._kept.get(name, (b"", 0.0))[0]
            bytes_then = self._bytes - len(before) + record.nbytes
            if self._limit is not None and bytes_then > self._limit:
                raise NoSpace("max_size_gb")
            self._kept[name] = (record.tobytes(), time.time())
            self._bytes = bytes_then

    def load(self, name: ObjectName, record: Bytes) -> None:
        time.sleep(record.nbytes * self._seconds_a_byte)
        with self._lock:
            if name not in self._kept:
                raise Missing
            data = self._kept[name][0]
            self._kept[name] = (data, time.time())
        if len(data) != record.nbytes:
            raise Corrupt("length", f"{len(data)} bytes")
        record[:] = np.frombuffer(data, np.uint8)

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        with self._lock:
            return [len(self._kept[name][0]) if name in self._kept else None for name in names]

    def delete(self, names: Sequence[ObjectName]) -> None:
        with self._lock:
            for name in names:
                self._remove(name)

    def scan(self) -> Iterator[list[Found]]:
        with self._lock:
            kept = list(self._kept.items())
        return batches(Found(name, len(data), used_at) for name, (data, used_at) in kept)

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        with self._lock:
            removed = self._remove(name)
            if removed is None:
                return False
            self._quarantine[name] = removed
            while len(self._quarantine) > _QUARANTINED:
                del self._quarantine[next(iter(self._quarantine))]
            return True

    def read_mark(self) -> str:
        return self._mark

    def write_mark(self, mark: str) -> None:
        self._mark = mark

    def room(self) -> int | None:
        return None if self._limit is None else self._limit - self._bytes

    def _remove(self, name: ObjectName) -> tuple[bytes, float] | None:
        removed = self._kept.pop(name, None)
        if removed is not None:
            self._bytes -= len(removed[0])
        return removed
