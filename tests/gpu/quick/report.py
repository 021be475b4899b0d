"""What a step tells: a line of JSON for each thing that it finds, written at once."""

from __future__ import annotations

import json
import os
from typing import Any, TextIO

OK, MISSED, RECORDED = "ok", "MISSED", "recorded"


class Skipped(Exception):
    """The step cannot be done here; the text says why."""


class WrongBytes(Exception):
    """Something came back that was not stored. Nothing is worse."""


class Report:
    """Findings of one step, into a file that is read even if the step does not get to its end."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def figure(
        self,
        what: str,
        value: float,
        unit: str,
        at_least: float | None = None,
        at_most: float | None = None,
        note: str = "",
    ) -> None:
        """Something measured; without bounds it is only recorded."""
        bounds = [f">= {at_least:g}"] if at_least is not None else []
        bounds += [f"<= {at_most:g}"] if at_most is not None else []
        missed = at_least is not None and value < at_least
        missed |= at_most is not None and value > at_most
        verdict = (MISSED if missed else OK) if bounds else RECORDED
        self.write(
            what=what, measured=f"{value:.3g} {unit}", expected=", ".join(bounds),
            verdict=verdict, note=note,
        )  # fmt: skip

    def check(self, what: str, holds: bool, note: str = "") -> None:
        """Something that should be so, and is missed if it is not."""
        self.write(what=what, verdict=OK if holds else MISSED, note=note)

    def fact(self, what: str, note: Any) -> None:
        """Something that is neither right nor wrong."""
        self.write(what=what, verdict=RECORDED, note=str(note))

    def skip(self, what: str, why: str) -> None:
        """A part that cannot be done here."""
        self.write(what=what, verdict="skipped", note=why)

    def same(self, what: str, is_same: bool) -> None:
        """Bytes that were compared. Raises WrongBytes."""
        if not is_same:
            raise WrongBytes(what)
        self.check(what, True)

    def write(self, **line: Any) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
