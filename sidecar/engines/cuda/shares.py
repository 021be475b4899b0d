"""torch's reference counters of the storages that workers share with us."""

import os
import re
import sys
from collections.abc import Iterable
from contextlib import suppress
from itertools import groupby
from operator import itemgetter

from sidecar.cache.segment import SHM_DIR

# A share's counter: (file, index). torch gives no place in a file to a second share.
Share = tuple[str, int]

# `/torch_<pid>_<random>`, newer with a suffix.
_FILE = re.compile(r"/(torch_[A-Za-z0-9_]{1,100})")
_COUNTER_BYTES = 8


def release(shares: Iterable[Share]) -> None:
    """Tell torch in the worker that these shares have ended: nobody maps them any more.

    Until then it keeps the memory when it is freed. A worker that is dead has no file.
    """
    for name, group in groupby(sorted(shares), itemgetter(0)):
        match = _FILE.fullmatch(name)
        if match is not None:
            with suppress(OSError):
                _release_in(match[1], [index for _, index in group])


def _release_in(name: str, indices: Iterable[int]) -> None:
    """Raises OSError."""
    fd = os.open(SHM_DIR / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for index in indices:
            at = index * _COUNTER_BYTES
            count = int.from_bytes(os.pread(fd, _COUNTER_BYTES, at), sys.byteorder)
            if count == 1:  # nobody else changes it: it counts this one share
                os.pwrite(fd, bytes(_COUNTER_BYTES), at)
    finally:
        os.close(fd)
