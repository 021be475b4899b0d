#!/usr/bin/env python3
"""Make sidecar/engines/cuda/copy_runs.ptx of the .cu file beside it; needs nvcc and ptxas.

The driver compiles PTX for whatever GPU it finds, so no toolkit is needed where the server runs.
nvcc writes the newest PTX version, which only the newest drivers read; the code needs an old one.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "sidecar" / "engines" / "cuda" / "copy_runs.cu"
TARGET = SOURCE.with_suffix(".ptx")
VERSION, ARCHITECTURE = "6.4", "sm_70"


def make() -> str:
    """The text of the PTX file."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made.ptx")
        subprocess.run(["nvcc", "-ptx", "-arch=compute_75", "-o", made, SOURCE], check=True)
        text = made.read_text()
        text = re.sub(r"^//.*\n", "", text, flags=re.M)
        text = re.sub(r"^\.version .*", f".version {VERSION}", text, flags=re.M)
        text = re.sub(r"^\.target .*", f".target {ARCHITECTURE}", text, flags=re.M)
        made.write_text(text)
        for arch in ("sm_75", "sm_80", "sm_90", "sm_100"):
            subprocess.run(["ptxas", f"-arch={arch}", "-o", "/dev/null", made], check=True)
    return text.strip() + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit(make() != TARGET.read_text() and f"{TARGET} is not what {SOURCE} makes")
    TARGET.write_text(make())
