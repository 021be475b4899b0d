"""The thread that everybody waits for runs first, and nothing that it starts does."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

from sidecar.limits import go_first


def nice_of_this_thread() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_who_goes_first_does_so_alone() -> None:
    """Where that is not allowed it goes as before."""
    before, seen = nice_of_this_thread(), dict[str, int]()

    def run() -> None:
        go_first()
        seen["itself"] = nice_of_this_thread()
        started = threading.Thread(target=lambda: seen.update(thread=nice_of_this_thread()))
        started.start()
        started.join()
        script = "import os; print(os.getpriority(os.PRIO_PROCESS, 0))"
        seen["process"] = int(subprocess.check_output([sys.executable, "-c", script]))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen["itself"] in (-10, before)
    # The kernel gives what a thread of high priority starts that of nobody in particular.
    assert seen["thread"] == seen["process"] == (0 if seen["itself"] < 0 else before)
    assert nice_of_this_thread() == before
