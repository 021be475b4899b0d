#!/usr/bin/env python3
"""Build what others install: two wheels and the sdist. They are the same for the same tree.

    .venv/bin/python -m scripts.dist [--to dist]

Needs the group `dev` of scripts/install.py.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=Path("dist"))
    folder = parser.parse_args().to
    for old in folder.glob("kv_sidecar*"):
        old.unlink()
    # The server's wheel is made from the sdist, so that this is known to have all of it.
    build(folder, ROOT)
    build(folder, ROOT / "connectors", "--wheel")
    for path in sorted(folder.glob("kv_sidecar*")):
        print(path)
    return 0


def build(folder: Path, source: Path, *flags: str) -> None:
    # The backend comes from .venv: nothing is fetched.
    command = [sys.executable, "-m", "build", "--no-isolation", *flags]
    subprocess.run([*command, "-o", str(folder), str(source)], check=True)


if __name__ == "__main__":
    sys.exit(main())
