"""Whether the programs are ready, asked in the background: a program that hangs holds up nobody."""

import threading
import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException

from launch.plan import Check, Program
from sidecar.commands import admin, wait

_SECONDS = 2.0
_PAUSE_SECONDS = 0.2
NOT_ASKED = "not asked yet"


def unready(check: Check) -> str:
    """Why the program behind `check` cannot be used; empty when it can."""
    if check.model:
        return wait.unready(check.base, check.model, _SECONDS)
    try:
        with urllib.request.urlopen(check.base + check.path, timeout=_SECONDS):
            return ""
    except (OSError, HTTPException, ValueError) as error:
        return admin.reason(error)


class Prober:
    """Asks each program in turn until the process ends."""

    def __init__(self, programs: Sequence[Program]) -> None:
        self._programs = programs
        self._answers = {program.name: NOT_ASKED for program in programs}
        threading.Thread(target=self._ask_all, daemon=True).start()

    def reason(self, name: str) -> str:
        """What `unready` said last of this program."""
        return self._answers[name]

    def forget(self, name: str) -> None:
        """A new process has its name."""
        self._answers[name] = NOT_ASKED

    def _ask_all(self) -> None:
        while True:
            for program in self._programs:
                self._answers[program.name] = unready(program.check)
            time.sleep(_PAUSE_SECONDS)
