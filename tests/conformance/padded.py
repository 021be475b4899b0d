"""A pool whose blocks hold every layer and padding; the stock wrapper needs help to name it."""

from __future__ import annotations

import numpy as np
import pytest

# First, because it skips the test module where torch or lmcache is absent.
from tests.support.layouts import BLOCKS, Group, KVCache, Layout, one_group  # isort: skip

import torch
from lmcache.v1.multiprocess.transfer_context import worker_transfer
from lmcache.v1.platform.base.ipc_wire import CpuShmIPCData, TensorMetadata
from lmcache.v1.platform.devices.cpu.shm import CpuShmTensorWrapper

PADDING = 40  # elements after the layers of each block


def padded_pool(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> KVCache:
    """A cache of strided views in one segment, [blocks][layers + padding].

    The stock CPU wrapper takes contiguous tensors only, but the descriptor that it sends can
    say any stride: build the descriptors from the tensors' own.
    """
    plain = one_group(layout)
    first = next(iter(plain.tensors.values()))
    block = int(np.prod(first.shape[1:]))
    width = len(plain.tensors) * block + PADDING
    pool = torch.zeros(BLOCKS * width, dtype=first.dtype)
    segment = CpuShmTensorWrapper.wrap(pool)
    tensors = {}
    for number, (name, tensor) in enumerate(plain.tensors.items()):
        inner = tensor.stride()[1:]
        view = torch.as_strided(pool, tensor.shape, (width, *inner), number * block)
        view.copy_(tensor)
        tensors[name] = view

    def wrap(caches: dict[str, torch.Tensor]) -> list[CpuShmTensorWrapper]:
        return [_describe(view, segment) for view in caches.values()]

    monkeypatch.setattr(worker_transfer, "wrap_kv_caches", wrap)
    return KVCache(tensors, layout.hint, [Group(list(tensors))])


def _describe(view: torch.Tensor, segment: CpuShmTensorWrapper) -> CpuShmTensorWrapper:
    metadata = TensorMetadata(
        dtype=str(view.dtype).removeprefix("torch."),
        shape=tuple(view.shape),
        stride=tuple(view.stride()),
        storage_offset=int(view.storage_offset()),
        device_uuid="cpu",
    )
    data = CpuShmIPCData(
        version=1, metadata=metadata, shm_name=segment.shm_name, nbytes=segment.nbytes
    )
    return CpuShmTensorWrapper.from_wire(data)
