"""What the threads of this process do: a process that is stopped does nothing."""

import os
import time
from typing import NamedTuple


class Activity(NamedTuple):
    """Seconds for which threads have worked, and have waited for a CPU, all together.

    `waited` is None where the system does not tell it: to ask takes a descriptor.
    """

    worked: float
    waited: float | None

    def since(self, earlier: "Activity") -> float:
        """Seconds of either; of waiting as far as it is known."""
        worked = self.worked - earlier.worked
        if self.waited is None or earlier.waited is None:
            return worked
        # Of threads that have ended meanwhile it is not told any more.
        return worked + max(0.0, self.waited - earlier.waited)


def activity() -> Activity:
    return Activity(time.process_time(), _waited())


def _waited() -> float | None:
    try:
        return sum(map(_waited_by, os.listdir("/proc/self/task"))) / 1e9
    except OSError:
        return None


def _waited_by(task: str) -> int:
    """In nanoseconds: the second number that Linux tells (Documentation/scheduler/sched-stats)."""
    try:
        with open(f"/proc/self/task/{task}/schedstat") as file:
            return int(file.read().split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has just ended
