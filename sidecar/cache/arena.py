"""The L1's memory: one segment, made resident ahead of use.

Writing to a page that nobody has touched runs at a quarter of the speed, and touching one
when /dev/shm is full is a SIGBUS. So a background thread makes the arena resident, piece by
piece, and only what is resident is ever handed out.
"""

import ctypes
import logging
import mmap
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sidecar.cache.segment import SHM_DIR, Segment, SegmentError

log = logging.getLogger(__name__)

ALIGNMENT = 4096  # O_DIRECT and page granularity
_PIECE = 64 << 20
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_BACKGROUND_NICE = 10
_MOUNTS = Path("/proc/self/mounts")
_libc = ctypes.CDLL(None, use_errno=True)


def aligned(size: int) -> int:
    """`size` rounded up to what an object occupies."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Arena:
    """Bytes of the L1, addressed by offset. `populate` makes them usable."""

    def __init__(self, segment: Segment, huge_pages: bool = False) -> None:
        """Raises SegmentError if `huge_pages` are asked for and the kernel gives none."""
        self.segment = segment
        self.size = segment.size
        self._huge_pages = huge_pages
        if huge_pages:
            _check_huge_pages()
            segment.map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(segment.map, np.uint8)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start_populating(self, on_piece: Callable[[int, int], None]) -> None:
        """Make the arena resident: its first piece at once, the others in the background.

        `on_piece(offset, size)` is called for each piece that became usable, on the thread that
        made it so. Whoever is told that the server is ready finds room.
        """
        if self._populate_piece(0, on_piece):
            self._thread = threading.Thread(
                target=self._populate_rest, args=(on_piece,), name="populate", daemon=True
            )
            self._thread.start()

    def stop_populating(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _populate_rest(self, on_piece: Callable[[int, int], None]) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICE)
        for offset in range(_PIECE, self.size, _PIECE):
            if self._stop.is_set() or not self._populate_piece(offset, on_piece):
                return

    def _populate_piece(self, offset: int, on_piece: Callable[[int, int], None]) -> bool:
        """False where there is no memory for it."""
        size = min(_PIECE, self.size - offset)
        if self._huge_pages:
            # Before fallocate, which knows nothing of the advice and takes small pages.
            fill_page_tables(self.bytes[offset : offset + size])
        try:
            os.posix_fallocate(self.segment.fd, offset, size)
        except OSError as error:
            log.error("the L1 stops at %d of %d bytes: /dev/shm: %s", offset, self.size, error)
            return False
        fill_page_tables(self.bytes[offset : offset + size])
        on_piece(offset, size)
        return True


def _check_huge_pages() -> None:
    """Raises SegmentError unless /dev/shm may have huge pages on request."""
    mounts = [line.split() for line in _MOUNTS.read_text().splitlines()]
    options = [mount[3] for mount in mounts if mount[1] == str(SHM_DIR)]
    if not re.search(r"\bhuge=(always|within_size|advise)\b", ",".join(options[-1:])):
        raise SegmentError(
            f"{SHM_DIR} is mounted without huge pages: mount -o remount,huge=advise {SHM_DIR}"
        )


def fill_page_tables(region: npt.NDArray[np.uint8]) -> None:
    """Map a resident region's pages now. Older kernels refuse; the first touch does it then."""
    address = ctypes.c_void_p(region.ctypes.data)
    _libc.madvise(address, ctypes.c_size_t(region.nbytes), _MADV_POPULATE_WRITE)
