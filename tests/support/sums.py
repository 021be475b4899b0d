"""Objects in device memory, summed up by a driver; as a program by the driver of this machine."""

from __future__ import annotations

import ctypes

import numpy as np
import xxhash

from sidecar.engines.cuda.digest import digest
from sidecar.engines.cuda.driver import Driver
from sidecar.engines.cuda.libcuda import LibCuda
from tests.support.server import wait_until

_GAP, _GUARD = 8, 32  # bytes between objects, words after the table
_random = np.random.default_rng(0)
SIZES = [
    248, 256, 1016, 1024, 1032, 2048, 2056, 4088, 4096, 4104, 65536, (1 << 20) + 8,
    *(8 * _random.integers(31, 16_384, 50)).tolist(),
]  # fmt: skip


def wrong(driver: Driver, sizes: list[int]) -> list[int]:
    """Sizes of objects whose digests are not xxhash's. All are summed up by one kernel."""
    data = _random.bytes(sum(sizes) + _GAP * len(sizes))
    starts = np.cumsum([_GAP, *(size + _GAP for size in sizes[:-1])])
    stream, place = driver.new_stream(), driver.allocate(len(data))
    _copy(driver, stream, place, _host(driver, data), len(data))
    sums = _sums(driver, stream, place + starts, sizes)
    objects = [data[start : start + size] for start, size in zip(starts, sizes, strict=True)]
    return [
        len(held)
        for held, words in zip(objects, sums.tolist(), strict=True)
        if digest(words, len(held)) != xxhash.xxh3_128_digest(held)
    ]


def _sums(driver: Driver, stream: int, starts: np.ndarray, sizes: list[int]) -> np.ndarray:
    """Eight words an object, by a table in device memory after which nothing is written."""
    guard = np.full(_GUARD, 0x5A5A)
    empty = np.zeros(8 * len(sizes), np.int64)
    table = np.concatenate((starts, sizes, empty, guard)).astype(np.uint64)
    held, place = _host(driver, table.tobytes()), driver.allocate(table.nbytes)
    _copy(driver, stream, place, held, table.nbytes)
    driver.sum_objects(place, len(sizes), stream)
    _copy(driver, stream, held, place, table.nbytes)
    found = np.frombuffer(ctypes.string_at(held, table.nbytes), np.uint64)
    assert np.array_equal(found[-_GUARD:], guard)
    return found[2 * len(sizes) : -_GUARD].reshape(-1, 8)


def _host(driver: Driver, data: bytes) -> int:
    held = driver.allocate_host(len(data))
    ctypes.memmove(held, data, len(data))
    return held


def _copy(driver: Driver, stream: int, to: int, source: int, size: int) -> None:
    driver.copy(*(np.array([n], np.uint64) for n in (to, source, size)), stream, False)
    event = driver.new_event()
    driver.record(event, stream)
    wait_until(lambda: driver.is_done(event), "the stream has come here")


if __name__ == "__main__":
    opened = LibCuda()
    opened.open("false")
    print(wrong(opened, SIZES))
