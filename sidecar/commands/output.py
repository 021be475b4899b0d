"""How commands speak: results on stdout, all else as one line on stderr."""

import sys


def complain(line: str) -> None:
    print(f"kv-sidecar: {line}", file=sys.stderr)
