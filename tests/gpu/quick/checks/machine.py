"""Step 0. What there is: everything after it is read with this beside it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess

from tests.gpu.quick.gpu import Gpu
from tests.gpu.quick.report import Report

PACKAGES = ("numpy", "torch", "pytest", "lmcache", "vllm", "msgspec", "pyzmq")
# CUdevice_attribute
ATTRIBUTES = {
    "compute capability": 75,
    "reads pageable memory of the host (HMM)": 88,
    "registered memory has the host's address": 91,
    "uses the host's page tables": 100,
    "words in streams (isolated_ipc)": 122,
    "IPC events": 125,
    "MPS": 133,
    "nearest NUMA node": 134,
}
_IPC_EVENTS = 125
SMI = {
    "MIG": ("--query-gpu=mig.mode.current", "--format=csv,noheader"),
    "confidential computing": ("conf-compute", "-f"),
    "driver": ("--query-gpu=driver_version", "--format=csv,noheader"),
}
_NEEDED_SHM = 1 << 30


def run(report: Report) -> None:
    report.fact("Python, packages", f"{platform.python_version()}, {', '.join(_packages())}")
    report.fact("wheels that are used", os.environ.get("GPU_QUICK_WHEELS") or "none")
    shm = os.statvfs("/dev/shm")
    free = shm.f_bavail * shm.f_frsize
    report.figure("room in /dev/shm", free / 1e9, "GB", at_least=_NEEDED_SHM / 1e9)
    for what, arguments in SMI.items():
        report.fact(f"{what}, by nvidia-smi", _smi(*arguments))
    gpu = Gpu()
    about, version = gpu.about, f"{gpu.about.driver // 1000}.{gpu.about.driver % 1000 // 10}"
    report.fact("GPU and driver", f"{about.name}, CUDA {version}, {about.multiprocessors} SMs")
    for name, number in ATTRIBUTES.items():
        report.fact(name, gpu.cuda.attribute(number))
    report.check("there are IPC events", bool(gpu.cuda.attribute(_IPC_EVENTS)))
    report.check("the kernels can be compiled", gpu.has_kernels)
    report.fact("memory that is free", f"{gpu.free_bytes() / 1e9:.1f} GB")


def _packages() -> list[str]:
    installed = {found.name.lower(): found.version for found in importlib.metadata.distributions()}
    return [f"{name} {installed.get(name, '-')}" for name in PACKAGES]


def _smi(*arguments: str) -> str:
    if shutil.which("nvidia-smi") is None:
        return "there is none"
    result = subprocess.run(
        ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=10, check=False
    )
    return " ".join((result.stdout or result.stderr).split())
