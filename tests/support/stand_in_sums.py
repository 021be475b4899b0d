"""Stands in for the kernel of `sum_objects` and for `digest`: until those are merged."""

from __future__ import annotations

import ctypes
from typing import Any

import xxhash

from sidecar.engines.cuda import file_lane
from sidecar.engines.cuda.libcuda import LibCuda


def install(driver: type[Any]) -> None:
    """The first two sums are the digest."""
    driver.sum_objects = _now if driver is LibCuda else _on_stream
    file_lane.digest = lambda sums, size: b"".join(n.to_bytes(8, "little") for n in sums[:2])  # type: ignore[assignment]


def _now(self: Any, table: int, objects: int, stream: int) -> None:
    words = (ctypes.c_uint64 * 10).from_address(table)
    found = xxhash.xxh3_128_digest(ctypes.string_at(words[0], words[1]))
    words[2:4] = [int.from_bytes(found[:8], "little"), int.from_bytes(found[8:], "little")]


def _on_stream(self: Any, table: int, objects: int, stream: int) -> None:
    self._call("sum_objects")
    self._streams[stream].put(lambda: _now(self, table, objects, stream))
