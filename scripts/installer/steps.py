"""Single steps of an installation; each exits with the end of its log where it fails."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"


def make_venv() -> None:
    check = [PYTHON, "-c", "import pip"]
    if PYTHON.exists() and subprocess.run(check, capture_output=True).returncode == 0:
        return
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(f"This Python cannot make virtual environments: install python{version}-venv")
    step(".venv", [sys.executable, "-m", "venv", str(VENV)])


def pip(label: str, *arguments: str, into: tuple[str, ...] = ()) -> None:
    command = [str(PYTHON), "-m", "pip", *into, "install", "-q", "--disable-pip-version-check"]
    step(label, [*command, *arguments])


def npm(label: str, *packages: str) -> None:
    command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(VENV / "node")]
    step(label, [*command, *packages])


def drop(label: str, distribution: str) -> None:
    """Take a distribution out of .venv, if it is there."""
    command = [str(PYTHON), "-m", "pip", "uninstall", "-q", "-y", "--disable-pip-version-check"]
    step(label, [*command, distribution])


def step(label: str, command: list[str]) -> None:
    """Run a command with its output in LOG, showing that it is alive; exit where it fails."""
    print(f"  {label} ", end="", flush=True)
    started = time.monotonic()
    with open(LOG, "a") as log:
        begin = log.tell()
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                code = process.wait(timeout=3)
                break
            except subprocess.TimeoutExpired:
                print(".", end="", flush=True)
    if code != 0:
        tail = LOG.read_text(errors="replace")[begin:].splitlines()[-15:]
        sys.exit("\n".join([" failed:", *tail, f"(all of it: {LOG.relative_to(ROOT)})"]))
    print(f" {time.monotonic() - started:.0f} s", flush=True)
