"""Caches on the GPU, and its memory."""

from __future__ import annotations

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
