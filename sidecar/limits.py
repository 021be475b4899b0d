"""What the operating system grants this process: descriptors, threads, and priority."""

import os
import resource
import threading
from contextlib import suppress

_FIRST = -10  # nice
# Beyond, the kernel's table alone takes megabytes, and some libraries have one of their own.
_MOST_DESCRIPTORS = 1 << 20
_MOST_CONNECTIONS, _PART_OF_DESCRIPTORS = 64, 16


def raise_descriptor_limit() -> None:
    """Every connection and open file takes a descriptor: as many as may be, not the usual 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptor_limit() -> int:
    """How many descriptors this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft


def connection_limit() -> int:
    """How many connections a socket beside the protocol's own may have.

    64; where there are few descriptors a sixteenth of these, for L2 and workers need some.
    """
    return min(_MOST_CONNECTIONS, descriptor_limit() // _PART_OF_DESCRIPTORS)


def go_first() -> None:
    """Have the calling thread run before others that are ready to, where the system allows it.

    It needs little of a CPU and everybody waits for it: where workers keep all CPUs busy it would
    wait for its turn five times as long as it runs. Threads and processes that it starts do not
    have its priority. It takes CAP_SYS_NICE, or a limit (systemd's LimitNICE=-10).
    """
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _FIRST)
        policy = os.SCHED_OTHER | os.SCHED_RESET_ON_FORK
        os.sched_setscheduler(threading.get_native_id(), policy, os.sched_param(0))


def check_threads(count: int) -> None:
    """Raises OSError unless `count` more threads can run.

    libzmq aborts the process where it gets none, and an abort cleans nothing up.
    """
    enough = threading.Event()
    threads = [threading.Thread(target=enough.wait, daemon=True) for _ in range(count)]
    started = []
    try:
        for thread in threads:
            thread.start()
            started.append(thread)
    except RuntimeError:
        raise OSError(
            f"only {len(started)} of {count} threads can be started: raise the limit of processes "
            "(ulimit -u, docker --pids-limit)"
        ) from None
    finally:
        enough.set()
        for thread in started:
            thread.join()
