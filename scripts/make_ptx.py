#!/usr/bin/env python3
"""Make a .ptx file of each .cu file in sidecar/engines/cuda; needs nvcc and ptxas.

The driver compiles PTX for whatever GPU it finds, so no toolkit is needed where the server runs.
nvcc writes the newest PTX version, which only the newest drivers read; the code needs an old one.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCES = sorted((Path(__file__).parents[1] / "sidecar" / "engines" / "cuda").glob("*.cu"))
VERSION, ARCHITECTURE = "6.4", "sm_70"


def make(source: Path) -> str:
    """The text of the PTX file."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made.ptx")
        subprocess.run(["nvcc", "-ptx", "-arch=compute_75", "-o", made, source], check=True)
        text = made.read_text()
        text = re.sub(r"^//.*\n", "", text, flags=re.M)
        text = re.sub(r"^\.version .*", f".version {VERSION}", text, flags=re.M)
        text = re.sub(r"^\.target .*", f".target {ARCHITECTURE}", text, flags=re.M)
        made.write_text(text)
        for arch in ("sm_75", "sm_80", "sm_90", "sm_100"):
            subprocess.run(["ptxas", f"-arch={arch}", "-o", "/dev/null", made], check=True)
    return text.strip() + "\n"


def stale() -> list[str]:
    """The sources whose PTX is not what they make."""
    return [s.name for s in SOURCES if make(s) != s.with_suffix(".ptx").read_text()]


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        names = stale()
        sys.exit(bool(names) and f"make_ptx.py makes another .ptx of {', '.join(names)}")
    for source in SOURCES:
        source.with_suffix(".ptx").write_text(make(source))
