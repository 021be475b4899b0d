"""What follows from the sizes in values/values.env: values/sizes.env."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

VALUES = Path(__file__).parent / "values"

# What the server needs beside its L1 (about 0.1 GiB at rest), with room for what is being written
# to L2, the page cache of it, and the host memory of a CUDA context for each GPU.
_SERVER_GIB = 4
# Page tables, which the kernel counts as the container's: 8 bytes a page of 4 KiB, for each process
# that maps the L1. These are the server and the child for each GPU, of which a node has 8.
_PAGE_TABLES = 9 * 8 / 4096
# vLLM's and NCCL's own use of /dev/shm: Dynamo gives its workers as much.
_WORKER_SHM_GIB = 8
_PROBE_SECONDS = 5
_MIN_FAILURES = 30
_SLOWEST_GIB_PER_SECOND = 1
# What the file system keeps for itself, and the adapter's own `min_free_gb`.
_L2_SLACK, _L2_FREE_GIB = 1.05, 1
_L2_PATH = "/var/lib/kv-sidecar/l2"


def read(path: Path) -> dict[str, str]:
    """The `NAME=value` lines of an env file, as kustomize reads them."""
    lines = (line.strip() for line in path.read_text().splitlines())
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return dict(pairs)


def derived(values: Mapping[str, str]) -> dict[str, str]:
    """Quantities of Kubernetes, a count of probes and an adapter's JSON; sizes in are GiB."""
    l1, l2 = (json.loads(values[name]) for name in ("L1_SIZE_GB", "L2_SIZE_GB"))
    adapter = {"type": "fs", "base_path": _L2_PATH, "max_capacity_gb": l2}
    populating = l1 / _SLOWEST_GIB_PER_SECOND
    return {
        "MEMORY": f"{math.ceil(l1 + l1 * _PAGE_TABLES) + _SERVER_GIB}Gi",
        "SHM_SIZE": f"{math.ceil(l1) + _WORKER_SHM_GIB}Gi",
        "STARTUP_FAILURES": str(max(_MIN_FAILURES, math.ceil(populating / _PROBE_SECONDS))),
        "L2_ADAPTER": json.dumps(adapter if l2 else [], separators=(",", ":")),
        "L2_VOLUME": f"{math.ceil(l2 * _L2_SLACK) + _L2_FREE_GIB}Gi",
    }


def write() -> None:
    """Bring sizes.env up to date."""
    lines = [f"{name}={value}" for name, value in derived(read(VALUES / "values.env")).items()]
    text = "# Made by `make k8s` from values.env; the rules are in ../sizes.py.\n"
    (VALUES / "sizes.env").write_text(text + "\n".join(lines) + "\n")
