"""The processes of a stack, found in /proc: also those whose parent has died."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Process:
    """`started` is in clock ticks since the boot: with `pid` it names one process for good."""

    pid: int
    group: int
    session: int
    started: int


def read(pid: int) -> Process | None:
    """None for a process that has ended, reaped or not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name, in parentheses, may hold anything.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return Process(pid, int(fields[2]), int(fields[3]), int(fields[19]))


def group(number: int, session: int) -> list[Process]:
    """All of a process group: a program with what it started.

    Of one session: after a while without a look the number may be somebody else's.
    """
    return _select(lambda process: (process.group, process.session) == (number, session))


def session(leader: Process) -> list[Process]:
    """All of the session that supervisord, `leader`, began, whether it still runs or not.

    The kernel gives the number of a session to no new process while one of it is left. Where a
    process has it that is not `leader`, none was left.
    """
    holder = read(leader.pid)
    if holder is not None and holder != leader:
        return []
    return _select(lambda process: process.session == leader.pid)


def _select(wanted: Callable[[Process], bool]) -> list[Process]:
    return [process for process in _all() if wanted(process)]


def _all() -> Iterator[Process]:
    for name in os.listdir("/proc"):
        if name.isdecimal() and (process := read(int(name))) is not None:
            yield process


def kill(find: Callable[[], list[Process]], seconds: float = 10.0) -> bool:
    """SIGKILL to what `find` finds until it finds nothing; False where that takes too long."""
    deadline = time.monotonic() + seconds
    while left := find():
        for process in left:
            send(process, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def send(process: Process, number: signal.Signals) -> None:
    """Signal `process`, and none that has taken its number since."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if read(process.pid) == process:
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    finally:
        os.close(descriptor)


def with_variable(assignment: str) -> list[Process]:
    """This user's processes that were started with `NAME=VALUE` in their environment."""
    wanted = assignment.encode()
    return _select(lambda process: wanted in _environment(process.pid))


def _environment(pid: int) -> list[bytes]:
    try:
        path = Path(f"/proc/{pid}/environ")
        return path.read_bytes().split(b"\0") if path.stat().st_uid == os.getuid() else []
    except OSError:
        return []
