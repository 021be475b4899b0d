"""What the owner of a segment wishes to become of it: a line in its lock file.

Times are of the clock that counts from the machine's boot, sleep included: what it is about does
not outlive that.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass

_MAX_BYTES = 256


@dataclass(frozen=True)
class Will:
    """To be kept for `keep_seconds`, 0 for not at all, from `since` on; None while it is owned."""

    keep_seconds: float = 0.0
    since: float | None = None

    @property
    def seconds_left(self) -> float:
        if self.since is None:
            return self.keep_seconds
        return self.keep_seconds - (now() - self.since)


def now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def write(fd: int, will: Will) -> None:
    """Into the lock file `fd`, whose lock is held. Where that fails nothing is kept."""
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(asdict(will)).encode() + b"\n", 0)


def read(fd: int) -> Will:
    """What stands in the lock file `fd`; what is no will is none."""
    try:
        said = json.loads(os.pread(fd, _MAX_BYTES, 0))
        will = Will(**said)
        times = [will.keep_seconds, *([] if will.since is None else [will.since])]
        return will if all(map(math.isfinite, times)) else Will()
    except (ValueError, TypeError, RecursionError, OSError):
        return Will()


def holds(fd: int) -> bool:
    """Whether what belongs to the free lock `fd`, which is held now, is still to be kept.

    An owner that was killed has not written when: then it counts from now.
    """
    will = read(fd)
    if will.keep_seconds > 0 and will.since is None:
        write(fd, Will(will.keep_seconds, now()))
    return will.seconds_left > 0
