#!/usr/bin/env python3
"""Make the .ptx files in sidecar/engines/cuda of the .cu files beside them; needs nvcc and ptxas.

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


if __name__ == "__main__":
    for source in SOURCES:
        target = source.with_suffix(".ptx")
        if sys.argv[1:] != ["--check"]:
            target.write_text(make(source))
        elif make(source) != target.read_text():
            sys.exit(f"{target} is not what {source} makes")
