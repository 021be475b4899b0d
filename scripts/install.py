#!/usr/bin/env python3
"""Fill .venv with groups of packages; a group that is in place already costs nothing.

    scripts/install.py GROUP...

base    the server and the connectors (`kv-sidecar`)
dev     the tools of `make lint` and `make test`
bench   fio, with which `make bench` compares
k8s     kubectl
images  buildah and debootstrap, with which images are built (as root)
docs    Sphinx, with which `make docs` builds a site of docs/
browser what drives a headless Chromium, and Chromium, for the tests of the dashboard page
engine  vLLM's CPU build and the stock LMCache: for the demo, the e2e tests and the benchmarks
storage the clients of every L2 backend, and servers for their tests (after `engine`)
clients older releases of LMCache, for the tests of what their clients speak (after `engine`)
gpu     the tools, and the CUDA builds of PyTorch and vLLM, in .venv/gpu: for `make gpu`
dynamo  NVIDIA Dynamo with the vLLM that it pins, in .venv/dynamo over .venv (after `storage`)

What a group needs of the system is installed too, where that is possible (as root, with apt-get);
where not, what is missing is named. Only the standard library is used: this runs before anything
is installed.
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - an older one must get this line, not a traceback
    sys.exit("kv-sidecar needs Python 3.11 or newer; this is %s" % sys.version.split()[0])  # noqa: UP031

import fcntl
import hashlib
import json
import tomllib
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1]))

from installer import system
from installer.groups import GROUPS, TEXT_MODELS, Group
from installer.steps import ROOT, VENV, make_venv

from sidecar import shared_libraries


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
    group, stamp = GROUPS[name], VENV / f".{name}.stamp"
    if stamp.exists() and stamp.read_text() == fingerprint(group):
        return
    print(f"Installing {group.note}", flush=True)
    make_venv()
    system.bring(group.needs)
    group.steps()
    stamp.write_text(fingerprint(group))


def fingerprint(group: Group) -> str:
    """Changes with whatever decides what is installed.

    Of the system what is missing: .venv may have come from another machine. And the folder, which
    scripts name.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    sources = sorted((ROOT / "scripts" / "installer").glob("*.py"))
    parts = [
        str(ROOT),
        json.dumps(project, sort_keys=True),
        *(path.read_text() for path in (*sources, Path(shared_libraries.__file__), TEXT_MODELS)),
        *system.missing(group.needs),
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit("\ninterrupted; run it again to go on")
