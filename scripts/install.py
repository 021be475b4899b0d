#!/usr/bin/env python3
"""Fill .venv with groups of packages; a group that is in place already costs nothing.

    scripts/install.py GROUP...

base    the server and the connectors (`kv-sidecar`)
dev     the tools of `make lint` and `make test`
k8s     kubectl
images  buildah and debootstrap, with which images are built (as root)
browser what drives a headless Chromium, and Chromium, for the tests of the dashboard page
engine  vLLM's CPU build and the stock LMCache: for the demo, the e2e tests and the benchmarks
storage the clients of every L2 backend, and servers for their tests (after `engine`)
gpu     the tools, and the CUDA builds of PyTorch and vLLM, in .venv/gpu: for `make gpu`
dynamo  NVIDIA Dynamo with the vLLM that it pins, in .venv/dynamo over .venv (after `storage`)

Only the standard library is used: this runs before anything is installed.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - an older one must get this line, not a traceback
    sys.exit("kv-sidecar needs Python 3.11 or newer; this is %s" % sys.version.split()[0])  # noqa: UP031

import fcntl
import hashlib
import json
import tomllib

from installer.groups import GROUPS, TEXT_MODELS
from installer.steps import ROOT, VENV, make_venv


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
        *(path.read_text() for path in sorted((ROOT / "scripts" / "installer").glob("*.py"))),
        TEXT_MODELS.read_text(),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run it again to go on")
