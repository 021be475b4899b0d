"""Checks that ask something which may never answer: a network file system, a driver."""

import queue
import threading
from collections.abc import Callable, Iterable

from sidecar.commands.doctor.finding import Finding, problem

_SECONDS = 20.0


def in_time(check: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What `look` finds, or a problem called `check` if that takes too long."""
    done: queue.SimpleQueue[list[Finding] | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put(list(look()))
        except Exception as error:
            done.put(error)

    # A daemon: the end of the program does not wait for it.
    threading.Thread(target=work, daemon=True).start()
    try:
        result = done.get(timeout=_SECONDS)
    except queue.Empty:
        return [
            problem(
                check,
                f"no answer within {_SECONDS:g} s",
                "what hangs here hangs in the server too",
                "look for a network file system that is down, or a driver that hangs (dmesg)",
            )
        ]
    if isinstance(result, Exception):
        raise result
    return result
