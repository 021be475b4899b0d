"""Caches on the GPU, its processes and memory."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

from tests.support.layouts import KVCache, Layout, one_group

CLOCK_HZ = 1_500_000_000  # about that of a data-centre GPU: for kernels that only wait


def on_gpu(layout: Layout, **dims: Any) -> KVCache:
    """A cache of one group in `layout` on the GPU."""
    cache = one_group(layout, **dims)
    for name, tensor in cache.tensors.items():
        cache.tensors[name] = tensor.cuda()
    return cache


def spin(seconds: float) -> None:
    """Let the current stream wait; the CPU goes on."""
    torch.cuda._sleep(int(seconds * CLOCK_HZ))


def used_mib() -> int:
    """Memory of the GPU in use by anybody."""
    free, total = torch.cuda.mem_get_info()
    return (total - free) >> 20


def gpus() -> list[str]:
    """The UUIDs of all GPUs, with their prefix."""
    return [uuid for (uuid,) in _smi("--query-gpu=uuid")]


def processes() -> dict[int, set[str]]:
    """The GPUs that each process has a context on, by process id.

    Empty in a container that hides processes.
    """
    found: dict[int, set[str]] = {}
    for pid, uuid in _smi("--query-compute-apps=pid,gpu_uuid"):
        found.setdefault(int(pid), set()).add(uuid)
    return found


def _smi(query: str) -> list[list[str]]:
    """The rows that nvidia-smi answers with."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return [line.split(", ") for line in text.splitlines() if line.strip()]
