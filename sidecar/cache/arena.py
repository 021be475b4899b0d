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
from collections import deque
from collections.abc import Callable
from itertools import chain, pairwise, zip_longest
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sidecar.cache.segment import SHM_DIR, Segment, SegmentError

log = logging.getLogger(__name__)

ALIGNMENT = 4096  # O_DIRECT and page granularity
PIECE_BYTES = 64 << 20  # that become resident together
_MADV_POPULATE_WRITE = 23  # Linux 5.14
_BACKGROUND_NICE = 10
_RETRY_SECONDS = 1.0
_MOUNTS = Path("/proc/self/mounts")
_libc = ctypes.CDLL(None, use_errno=True)


def aligned(size: int) -> int:
    """`size` rounded up to what an object occupies."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def parts_of(size: int, count: int) -> list[range]:
    """`size` bytes cut into `count` parts of whole pieces, the last one's end excepted.

    They are one part where there are no pieces for so many.
    """
    pieces = size // PIECE_BYTES
    count = count if 0 < count <= pieces else 1
    starts = [pieces * part // count * PIECE_BYTES for part in range(count)]
    return [range(start, end) for start, end in pairwise([*starts, size])]


class Arena:
    """Bytes of the L1, addressed by offset. `populate` makes them usable.

    An object lies in one of its `parts`.
    """

    def __init__(self, segment: Segment, huge_pages: bool = False, parts: int = 1) -> None:
        """Raises SegmentError if `huge_pages` are asked for and the kernel gives none."""
        self.segment = segment
        self.size = segment.size
        self.parts = parts_of(segment.size, parts)
        self._huge_pages = huge_pages
        if huge_pages:
            _check_huge_pages()
            segment.map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(segment.map, np.uint8)
        self.resident: set[int] = set()  # where pieces begin that were so before
        self._populated = 0
        self._short = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start_populating(self, on_piece: Callable[[int, int], None]) -> None:
        """Make the arena resident: its first piece at once, the others in the background.

        `on_piece(offset, size)` is called for each piece that became usable, on the thread that
        made it so. Whoever is told that the server is ready finds room. Parts take turns. While
        /dev/shm is full the rest waits.
        """
        by_part = [range(part.start, part.stop, PIECE_BYTES) for part in self.parts]
        turns = chain.from_iterable(zip_longest(*by_part))
        offsets = deque(offset for offset in turns if offset is not None)
        if self._populate_piece(offsets[0], on_piece):
            offsets.popleft()
        if offsets:
            self._thread = threading.Thread(
                target=self._populate_rest, args=(offsets, on_piece), name="populate", daemon=True
            )
            self._thread.start()

    def stop_populating(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _populate_rest(self, offsets: deque[int], on_piece: Callable[[int, int], None]) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _BACKGROUND_NICE)
        while offsets and not self._stop.is_set():
            if self._populate_piece(offsets[0], on_piece):
                offsets.popleft()
            else:
                self._stop.wait(_RETRY_SECONDS)

    def _populate_piece(self, offset: int, on_piece: Callable[[int, int], None]) -> bool:
        """False where there is no memory for it now."""
        size = min(PIECE_BYTES, self.size - offset)
        if self._huge_pages:
            # Before fallocate, which knows nothing of the advice and takes small pages.
            fill_page_tables(self.bytes[offset : offset + size])
        try:
            os.posix_fallocate(self.segment.fd, offset, size)
        except OSError as error:
            self._report(f"{error.strerror}; it grows on when there is room")
            return False
        self._report("")
        fill_page_tables(self.bytes[offset : offset + size])
        self._populated += size
        on_piece(offset, size)
        return True

    def _report(self, shortage: str) -> None:
        """Log where a shortage ("" for none) begins and ends."""
        if bool(shortage) == self._short:
            return
        self._short = bool(shortage)
        if shortage:
            done, whole = self._populated, self.size
            log.error("the L1 stops at %d of %d bytes: /dev/shm: %s", done, whole, shortage)
        else:
            log.warning("the L1 grows on: /dev/shm has room again")


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
