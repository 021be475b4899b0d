#!/usr/bin/env python3
"""Write the flags of `lmcache server` into docs/migrating.md, from sidecar/config/stock_flags.py.

scripts/stock_flags_doc.py
"""

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sidecar.config.stock_flags import IGNORED, REFUSED, spellings  # noqa: E402

PAGE = ROOT / "docs" / "migrating.md"
BEGIN = "<!-- Made from sidecar/config/stock_flags.py by `make generate`. -->\n"
END = "<!-- End of what is made. -->\n"


def page() -> str:
    """The whole text: what stands on the page, with new tables between the marks."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    return before + BEGIN + "".join(_tables()) + END + rest.partition(END)[2]


def _tables() -> Iterator[str]:
    yield "\nAccepted, with a line that says why they change nothing:\n\n"
    yield "| flag | why |\n|---|---|\n"
    for name, reason in IGNORED.items():
        yield f"| {_flags(name)} | {reason} |\n"
    yield "\nRefused, exit code 2, because what they ask for would silently be missing:\n\n"
    yield "| flag | why | accepted as |\n|---|---|---|\n"
    for name, refusal in REFUSED.items():
        yield f"| {_flags(name)} | {refusal.reason} | {_harmless(name, refusal.harmless)} |\n"
    yield "\n"


def _flags(name: str) -> str:
    return ", ".join(f"`{spelling}`" for spelling in spellings(name))


def _harmless(name: str, value: str | None) -> str:
    """The use that asks for nothing."""
    if value is not None:
        return f"`--{name} {value}`" if value else f'`--{name} ""`'
    off = f"--no-{name}"
    return f"`{off}`" if off in spellings(name) else ""


if __name__ == "__main__":
    PAGE.write_text(page())
