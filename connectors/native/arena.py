"""The sidecar's memory as a worker process has it mapped."""

import ctypes
import logging
import mmap
import os
import re
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt

from connectors.native.wire import SLOT_BYTES

logger = logging.getLogger("vllm.kv_sidecar")

SHM = Path("/dev/shm")
_libc = ctypes.CDLL(None)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,200}")


class Arena:
    """One mapping of a sidecar's arena. It ends with its last user, a copy under way included.

    `bytes` is all of it (uint8); `pinned`: it is page-locked for a GPU. Raises OSError if there is
    no such segment here, ValueError if it is none that can be the arena.
    """

    def __init__(self, server: bytes, shm_name: str, arena_bytes: int, folder: Path = SHM) -> None:
        if not _NAME.fullmatch(shm_name) or arena_bytes < SLOT_BYTES:
            raise ValueError(f"{shm_name!r} of {arena_bytes} bytes is no arena")
        self.server = server
        # Opened once: the kernel tells the sidecar when this process has let go of it.
        fd = os.open(folder / shm_name, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if os.fstat(fd).st_size < arena_bytes:
                raise ValueError(f"{shm_name} is shorter than the arena of {arena_bytes} bytes")
            self._mapping = mmap.mmap(fd, arena_bytes)
        finally:
            os.close(fd)
        # A child that this process forks has nothing to do with it.
        self._mapping.madvise(mmap.MADV_DONTFORK)
        self.pinned = False
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self._mapping, np.uint8)

    def slot(self, slot: int, size: int) -> npt.NDArray[np.uint8]:
        """The `size` bytes from `slot` on. Raises ValueError outside the arena."""
        begin = slot * SLOT_BYTES
        if not 0 <= begin <= len(self.bytes) - size:
            raise ValueError(f"slot {slot} is outside the arena")
        return self.bytes[begin : begin + size]

    def is_resident(self, offset: int, size: int) -> bool:
        """Whether all pages of these bytes exist; `offset` is a multiple of a page's size.

        Asks without touching them. Also true where the kernel does not tell.
        """
        pages = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        told = _libc.mincore(
            ctypes.c_void_p(self.bytes.ctypes.data + offset),
            ctypes.c_size_t(size),
            ctypes.c_void_p(pages.ctypes.data),
        )
        return told != 0 or bool((pages & 1).all())


class UnknownArena(RuntimeError):
    """A job names an arena that this process does not have: its bytes cannot be right."""


class Arenas:
    """The arenas that jobs may still name, oldest first. Two threads use it.

    The scheduler goes over to a new arena once, and jobs arrive in the order in which it planned
    them. So the first job of a newer arena is the end of the older ones. To unpin and unmap one
    takes long, so that is left to `let_go`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arenas: dict[bytes, Arena] = {}
        self._over: list[Arena] = []

    def add(self, arena: Arena) -> None:
        """Take a new mapping: of a new sidecar, or in the place of an earlier one of the same."""
        with self._lock:
            self._arenas[arena.server] = arena

    def of(self, server: bytes) -> Arena:
        """The arena of a job. Raises UnknownArena."""
        with self._lock:
            if server not in self._arenas:
                raise UnknownArena("a transfer names a sidecar whose arena is not mapped here")
            while (oldest := next(iter(self._arenas))) != server:
                self._over.append(self._arenas.pop(oldest))
            return self._arenas[server]

    def retire(self, arena: Arena) -> None:
        """The caller, perhaps its last user, has no more use for it."""
        with self._lock:
            self._over.append(arena)

    def let_go(self) -> None:
        """Of what is over. For a thread that may take its time."""
        with self._lock:
            over, self._over = self._over, []
        over.clear()
