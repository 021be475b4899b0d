"""A process that has no free descriptor."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

_LIMIT = 512


@contextlib.contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Whatever this process opens meanwhile fails: EMFILE."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (_LIMIT, before[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
