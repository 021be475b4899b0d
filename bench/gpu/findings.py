"""What was measured beside what is expected, as lines, as Markdown and as JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bench.gpu.expected import FIGURES, Expected


@dataclass(frozen=True)
class Finding:
    """The figure `key` of FIGURES; `value` is None where it could not be measured.

    `note` says why not, or under which circumstances it was.
    """

    key: str
    value: float | None
    note: str = ""

    @property
    def expected(self) -> Expected:
        return FIGURES[self.key]

    @property
    def is_met(self) -> bool | None:
        """None where there is nothing to meet or nothing was measured."""
        if self.value is None:
            return None
        return self.expected.target.reached(self.value, None, None)

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "not measured"
        return {True: "ok", False: "MISSED", None: "recorded"}[self.is_met]

    @property
    def measured(self) -> str:
        return "-" if self.value is None else f"{self.value:.3g} {self.expected.unit}"


def line(finding: Finding) -> str:
    """For the terminal."""
    expected = finding.expected
    text = f"{expected.check:2}  {expected.what:70} {finding.measured:>12}"
    return f"{text}  {expected.target.text():8} {finding.verdict}  {finding.note}".rstrip()


def markdown(findings: Iterable[Finding]) -> str:
    """A table for docs/understand.md, in the order of the checks."""
    lines = ["| check | figure | measured | expected | by | |", "|--:|---|--:|---|---|---|"]
    for finding in sorted(findings, key=lambda finding: finding.expected.check):
        expected = finding.expected
        verdict = finding.verdict + (f": {finding.note}" if finding.note else "")
        bounds, source = expected.target.text(), expected.source
        cells = (
            expected.check,
            expected.what,
            finding.measured,
            bounds,
            bounds and source,
            verdict,
        )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def as_json(finding: Finding) -> dict[str, Any]:
    expected = finding.expected
    return {
        "check": expected.check,
        "figure": finding.key,
        "what": expected.what,
        "unit": expected.unit,
        "measured": finding.value,
        "expected": expected.target.text(),
        "by": expected.source,
        "met": finding.is_met,
        "note": finding.note,
    }
