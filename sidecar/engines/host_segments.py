"""A worker's shared-memory segments, mapped side by side into one range of addresses.

Side by side, so that blocks of all layers are rows of one array and one numpy call can move a
whole chunk: a call a layer would spend its time handing the GIL from thread to thread.
"""

import ctypes
import mmap
import os
import re
import stat
import weakref

import numpy as np
import numpy.typing as npt

from sidecar.cache.arena import fill_page_tables
from sidecar.cache.segment import SHM_DIR

# What the stock client calls its segments; nothing else of /dev/shm is ever opened for it.
_CLIENT_SEGMENT = re.compile(r"/(lmcache_kv_[A-Za-z0-9._-]{1,200})")
_MAX_ADDRESSES = 1 << 46  # half of what a process has
_MAP_FIXED, _MAP_NORESERVE, _MAP_FAILED = 0x10, 0x4000, 2**64 - 1

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_uint64
_libc.mmap.argtypes = [
    ctypes.c_uint64, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
]  # fmt: skip
_libc.munmap.argtypes = [ctypes.c_uint64, ctypes.c_size_t]


class SegmentRefused(ValueError):
    """A worker named a segment that we may not or cannot map."""


class MappedSegments:
    """Segments by name, mapped for as long as anything refers to `bytes`.

    `bytes` covers them all (uint8); segment `name` begins at `offsets[name]`, a multiple of
    `alignment`. What lies between segments must not be touched.
    """

    def __init__(self, sizes: dict[str, int], alignment: int) -> None:
        """Map `sizes[name]` bytes of each segment; `alignment` is a multiple of the page size.

        May take a while: not for the loop. Raises SegmentRefused, also where /dev/shm cannot
        hold all of it: a page that cannot be had is a SIGBUS for whoever touches it first.
        """
        self.offsets: dict[str, int] = {}
        total = 0
        for name, nbytes in sizes.items():
            self.offsets[name] = total
            total += -(-nbytes // alignment) * alignment
        if not 0 < total <= _MAX_ADDRESSES:
            raise SegmentRefused(f"{len(sizes)} segments of {total} bytes")
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
        address = _mmap(0, total, 0, flags, -1)
        memory = (ctypes.c_uint8 * total).from_address(address)
        # Every array over this memory refers to it: the last one unmaps.
        weakref.finalize(memory, _libc.munmap, address, total).atexit = False
        for name, nbytes in sizes.items():
            _map_segment(name, nbytes, address + self.offsets[name])
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(memoryview(memory).cast("B"), np.uint8)
        for name, nbytes in sizes.items():
            start = self.offsets[name]
            fill_page_tables(self.bytes[start : start + nbytes])


def _map_segment(name: str, nbytes: int, address: int) -> None:
    match = _CLIENT_SEGMENT.fullmatch(name)
    if match is None:
        raise SegmentRefused(f"segment name {name[:64]!r}")
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        fd = os.open(SHM_DIR / match[1], flags)
    except OSError as error:
        raise SegmentRefused(f"segment {name}: {error.strerror}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or not 0 < nbytes <= status.st_size:
            raise SegmentRefused(f"segment {name} has {status.st_size} of {nbytes} bytes")
        os.posix_fallocate(fd, 0, nbytes)
        access = mmap.PROT_READ | mmap.PROT_WRITE
        _mmap(address, nbytes, access, mmap.MAP_SHARED | _MAP_FIXED, fd)
    except OSError as error:
        raise SegmentRefused(f"segment {name}: {error.strerror}") from None
    finally:
        os.close(fd)


def _mmap(address: int, nbytes: int, access: int, flags: int, fd: int) -> int:
    mapped: int = _libc.mmap(address, nbytes, access, flags, fd, 0)
    if mapped == _MAP_FAILED:
        raise SegmentRefused(f"mmap of {nbytes} bytes: {os.strerror(ctypes.get_errno())}")
    return mapped
