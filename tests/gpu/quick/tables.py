"""What was found, as tables for docs/understand.md."""

from __future__ import annotations

from collections.abc import Iterable

from tests.gpu.quick.runner import Outcome


def markdown(outcomes: Iterable[Outcome], date: str) -> str:
    """The steps, then the figures of each."""
    outcomes = list(outcomes)
    lines = [f"{_title(outcomes)}, {date[:10]}", "", "| # | check | s | |", "|--:|---|--:|---|"]
    lines += [_row(o.step, o.what, f"{o.seconds:.0f}", o.text) for o in outcomes]
    lines += ["", "| # | figure | measured | expected | |", "|--:|---|--:|---|---|"]
    for outcome in outcomes:
        for part in outcome.parts:
            verdict = part["verdict"] + (f": {part['note']}" if part.get("note") else "")
            cells = part["what"], part.get("measured", ""), part.get("expected", ""), verdict
            lines.append(_row(outcome.step, *cells))
    return "\n".join(lines) + "\n"


def _title(outcomes: list[Outcome]) -> str:
    """The GPU and its driver, if they are known."""
    found = [p["note"] for o in outcomes for p in o.parts if p["what"] == "GPU and driver"]
    return found[0] if found else "GPU not known"


def _row(*cells: object) -> str:
    text = (str(cell).replace("|", "/").replace("\n", " ") for cell in cells)
    return "| " + " | ".join(text) + " |"
