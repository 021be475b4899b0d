"""Whether the programs are ready, asked in the background: a program that hangs holds up nobody."""

import threading
import time
from collections.abc import Sequence

from launch.plan import Check, Program
from sidecar.commands import admin, wait

_SECONDS = 2.0
_TICK_SECONDS = 0.2
# Programs log each refusal: who loads a model for minutes is not asked five times a second.
_LONGEST_PAUSE_SECONDS = 3.0
NOT_ASKED = "not asked yet"


def unready(check: Check) -> str:
    """Why the program behind `check` cannot be used; empty when it can."""
    if check.model:
        return wait.unready(check.base, check.model, _SECONDS)
    try:
        admin.get_text(check.base, check.path, _SECONDS)
        return ""
    except (OSError, ValueError) as error:
        return admin.reason(error)


class Prober:
    """Asks each program until it is ready, less and less often."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self._checks = {program.name: program.check for program in programs}
        self._answers = dict.fromkeys(self._checks, NOT_ASKED)
        self._pauses = dict.fromkeys(self._checks, _TICK_SECONDS)
        self._next = dict.fromkeys(self._checks, 0.0)
        threading.Thread(target=self._ask_all, daemon=True).start()

    def reason(self, name: str) -> str:
        """What `unready` said last of this program."""
        return self._answers[name]

    def forget(self, name: str) -> None:
        """A new process has its name."""
        self._answers[name] = NOT_ASKED
        self._pauses[name] = _TICK_SECONDS

    def _ask_all(self) -> None:
        while True:
            for name, check in self._checks.items():
                if self._answers[name] and time.monotonic() >= self._next[name]:
                    self._answers[name] = unready(check)
                    self._pauses[name] = min(1.5 * self._pauses[name], _LONGEST_PAUSE_SECONDS)
                    self._next[name] = time.monotonic() + self._pauses[name]
            time.sleep(_TICK_SECONDS)
