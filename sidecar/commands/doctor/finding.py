"""What a check has found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """`what` was found by `check`; where it is not ok, `why` that matters and what to `do`."""

    check: str
    level: Level
    what: str
    why: str = ""
    do: str = ""


def ok(check: str, what: str) -> Finding:
    return Finding(check, "ok", what)


def warning(check: str, what: str, why: str, do: str) -> Finding:
    """It works, but not as well or not as long as it could."""
    return Finding(check, "warning", what, why, do)


def problem(check: str, what: str, why: str, do: str) -> Finding:
    """Something does not work, or will not."""
    return Finding(check, "problem", what, why, do)
