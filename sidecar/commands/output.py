"""How commands speak: results on stdout, all else as one line on stderr."""

import contextlib
import sys
from collections.abc import Iterable, Sequence


def complain(line: str) -> None:
    # A warning that goes to a full disk must not keep a server from starting.
    with contextlib.suppress(OSError):
        print(f"kv-sidecar: {printable(line.strip())}", file=sys.stderr)


def printable(text: str) -> str:
    """What a server or worker has said must not steer the terminal."""
    return "".join(c if c.isprintable() else "?" for c in text)


def amount(count: float) -> str:
    """Bytes for people: four digits and a binary unit."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def columns(rows: Sequence[Iterable[str]]) -> list[str]:
    """Rows of equal length as lines, each column as wide as its widest cell."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
