"""Reads files into the fake GPU's memory; the name of a file tells what goes wrong with it."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping
from pathlib import Path

from sidecar.engines.cuda.files import CannotRead, ReadFailed

SLOW_SECONDS = 0.2


class FakeReader:
    """`FileReader` without NIXL.

    `fails` fails on its way, `hangs` never ends, `wrong` has a bit turned, `slow` takes a while.
    The backend "none" does not start, and with "lost" memory cannot be registered. Where the
    environment names a file FAKE_READS, what that holds is part of every name; FAKE_OPEN_SECONDS
    is how long the start takes; less than 0: it crashes.
    """

    def __init__(self, backend: str, params: Mapping[str, str]) -> None:
        if backend == "none":
            raise CannotRead("there is no such backend")
        seconds = float(os.environ.get("FAKE_OPEN_SECONDS", 0))
        if seconds < 0:
            os.abort()
        time.sleep(seconds)
        self.backend = backend
        self.failed: str | None = None
        self.registered: dict[int, int] = {}
        self.begun: list[str] = []

    def register(self, address: int, size: int) -> int:
        if self.backend == "lost":
            raise CannotRead("memory cannot be registered")
        self.registered[address] = size
        return address

    def deregister(self, memory: int) -> None:
        del self.registered[memory]

    def begin(self, path: str, offset: int, size: int, address: int) -> FakeRead:
        if self.failed is not None:
            raise CannotRead(self.failed)
        assert size <= self.registered[address]
        try:
            data = Path(path).read_bytes()[offset : offset + size]
        except OSError as error:
            raise CannotRead(f"{path}: {error.strerror}") from None
        if len(data) < size:
            raise CannotRead(f"{path}: too short")
        self.begun.append(Path(path).name)
        return FakeRead(self, Path(path).name + _all_reads(), data, address)


def _all_reads() -> str:
    given = Path(os.environ.get("FAKE_READS", "/nowhere"))
    return given.read_text() if given.exists() else ""


class FakeRead:
    def __init__(self, reader: FakeReader, name: str, data: bytes, address: int) -> None:
        self._reader, self._name, self._data, self._address = reader, name, data, address
        self._began = time.monotonic()

    def is_done(self) -> bool:
        if "fails" in self._name:
            self._reader.failed = f"{self._name}: the disk is broken"
            raise ReadFailed(self._reader.failed)
        if "hangs" in self._name:
            return False
        if "slow" in self._name and time.monotonic() - self._began < SLOW_SECONDS:
            return False
        data = bytearray(self._data)
        data[-1] ^= "wrong" in self._name
        ctypes.memmove(self._address, bytes(data), len(data))
        return True
