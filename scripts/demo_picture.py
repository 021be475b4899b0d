#!/usr/bin/env python3
"""Make the picture of `make demo` in the README: a real run of it, as a terminal shows it.

    .venv/bin/python -m scripts.demo_picture [--to docs/images/demo.svg]

Needs the groups `engine` and `dev` of scripts/install.py, and an idle machine for figures that
mean something.
"""

import argparse
import io
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

WIDTH = 80
# Fonts from the network, where a picture in a page gets nothing.
FONTS = re.compile(r"@font-face \{.*?\}", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("docs/images/demo.svg"))
    given = parser.parse_args()
    lines, code = play()
    if code == 0:
        given.to.write_text(picture(lines))
    return code


def play() -> tuple[list[str], int]:
    """The lines of a run, which this terminal sees too, and its exit code."""
    command = [sys.executable, "-m", "examples.demo"]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip("\n"))
    return lines, process.returncode


def picture(lines: list[str]) -> str:
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    console.print(Text("$ make demo", style="bold green"))
    for line in lines:
        console.print(Text(line, style="bold" if "sooner" in line else ""))
    svg = FONTS.sub("", console.export_svg(title="kv-sidecar", theme=MONOKAI, unique_id="demo"))
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


if __name__ == "__main__":
    sys.exit(main())
