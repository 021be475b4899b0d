"""A small /dev/shm of a test's own, in a mount namespace."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000
_libc = ctypes.CDLL(None, use_errno=True)


def with_small_shm(size: str, test: Callable[[], None]) -> None:
    """Call `test` where /dev/shm, also that of processes which it starts, has `size` (as "40m").

    In a thread: each has a mount namespace, which ends with it.
    """
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_enter, size).result()
        thread.submit(test).result()


def _enter(size: str) -> None:
    if (
        _libc.unshare(_CLONE_NEWNS)
        or _libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)
        or _libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode())
    ):
        pytest.skip(f"no mount namespaces here: {os.strerror(ctypes.get_errno())}")
