#!/usr/bin/env python3
"""Draw the table of results in docs/understand.md: docs/images/benchmarks.svg.

    .venv/bin/python -m scripts.benchmark_picture [--to FILE]

Run it when the table is replaced. Needs the group `dev` of scripts/install.py.
"""

import argparse
import re
import sys
from pathlib import Path

from bench import plot
from bench.figures import FIGURES, Row

DOCS = Path("docs")
PICTURE = DOCS / "images" / "benchmarks.svg"
_ROW = re.compile(r"\| (.+?) \| \S+ \| ([\d.]+) \| ([\d.]+) \|.*\|")


def table() -> list[Row]:
    """The rows of the first table of results that have both servers' figures."""
    text = (DOCS / "understand.md").read_text().partition("\n### Results\n")[2]
    by_title = {figure.title.strip(): figure for figure in FIGURES}
    lines = text.split("\n\n")[1].splitlines()
    found = [match.groups() for line in lines if (match := _ROW.match(line))]
    return [Row(by_title[title], float(peer), float(ours), None) for title, peer, ours in found]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=PICTURE)
    given = parser.parse_args()
    plot.write(given.to, table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
