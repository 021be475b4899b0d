"""How commands speak: results on stdout, all else as one line on stderr."""

import sys


def complain(line: str) -> None:
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
