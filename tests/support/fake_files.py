"""Moves files from and to the fake GPU's memory; a file's name tells what goes wrong with it."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sidecar.engines.cuda.file_mover import CannotMove, MoveFailed

SLOW_SECONDS = 0.2


class FakeMover:
    """`FileMover` without NIXL.

    `fails` fails on its way, `hangs` never ends, `wrong` has a bit turned, `slow` takes a while,
    `refused` does not begin. The backend "none" does not start, and with "lost" memory cannot be
    registered. Where the environment names a file FAKE_FILES, what that holds is part of every
    name; FAKE_OPEN_SECONDS is how long the start takes; less than 0: it crashes.
    """

    def __init__(self, backend: str, params: Mapping[str, str]) -> None:
        if backend == "none":
            raise CannotMove("there is no such backend")
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
            raise CannotMove("memory cannot be registered")
        self.registered[address] = size
        return address

    def deregister(self, memory: int) -> None:
        del self.registered[memory]

    def begin(self, path: str, offset: int, size: int, address: int, is_store: bool) -> FakeCopy:
        if self.failed is not None:
            raise CannotMove(self.failed)
        assert size <= self.registered[address]
        name = Path(path).name + all_files()
        try:
            length = os.stat(path).st_size
        except OSError as error:
            raise CannotMove(f"{path}: {error.strerror}") from None
        if length < offset + size:
            raise CannotMove(f"{path}: too short")
        if "refused" in name:
            raise CannotMove(f"{path}: refused")
        self.begun.append(Path(path).name)
        memory = (ctypes.c_ubyte * size).from_address(address)
        return FakeCopy(self, name, path, offset, memory, is_store)


def all_files() -> str:
    """What happens to all files."""
    given = Path(os.environ.get("FAKE_FILES", "/nowhere"))
    return given.read_text() if given.exists() else ""


class FakeCopy:
    def __init__(
        self, mover: FakeMover, name: str, path: str, offset: int, memory: Any, is_store: bool
    ) -> None:
        self._mover, self._name, self._path, self._offset = mover, name, path, offset
        self._memory, self._is_store = memory, is_store
        self._began = time.monotonic()

    def is_done(self) -> bool:
        if "fails" in self._name:
            self._mover.failed = f"{self._name}: the disk is broken"
            raise MoveFailed(self._mover.failed)
        if "hangs" in self._name:
            return False
        if "slow" in self._name and time.monotonic() - self._began < SLOW_SECONDS:
            return False
        with open(self._path, "r+b" if self._is_store else "rb") as file:
            file.seek(self._offset)
            if self._is_store:
                file.write(self._turned(bytes(self._memory)))
            else:
                self._memory[:] = self._turned(file.read(len(self._memory)))
        return True

    def _turned(self, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ ("wrong" in self._name)])
