"""Handles of GPU memory as the stock client's own classes write them."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("lmcache", reason="the stock client is not installed")

import msgspec
from lmcache.v1.platform.base.ipc_wire import (
    CudaIPCData,
    RawCudaIPCData,
    TensorMetadata,
    VmmCudaIPCData,
)
from lmcache.v1.platform.base.ipc_wrapper import DeviceIPCWrapper
from lmcache.v1.platform.devices.cuda.ipc_wrapper import (
    CudaIPCWrapper,
    RawCudaIPCWrapper,
    VmmCudaIPCWrapper,
)

from sidecar.handlers.pending_registration import PendingRegistration
from sidecar.wire.messages import LayoutHints

HANDLE = bytes(range(64))
UUID = "8a5e7a3c-1111-2222-3333-444455556666"
SHAPE = (2, 8, 16, 4, 64)
STRIDE = (32_768, 4096, 256, 64, 1)


def metadata(offset: int = 0) -> TensorMetadata:
    return TensorMetadata("bfloat16", SHAPE, STRIDE, offset, UUID)


def described(wrapper: DeviceIPCWrapper) -> PendingRegistration:
    """The registration of one tensor, as it comes over the wire."""
    pending = PendingRegistration(1, b"client", "model", 1, LayoutHints(kv_layout="NHD"))
    pending.prepare([msgspec.msgpack.Ext(1, DeviceIPCWrapper.Serialize(wrapper))], [], 64)
    return pending


@pytest.mark.parametrize("memory", [HANDLE, b"\2c" + HANDLE])
def test_torch_s_sharing(memory: bytes) -> None:
    handle = (3, memory, 131_072 + 512, 2048, b"/torch_77_1_2", 5, bytes(64), True)
    data = CudaIPCData(version=1, metadata=metadata(offset=256), handle=handle)
    pending = described(CudaIPCWrapper.from_wire(data))
    assert pending.layout is not None, pending.refusal
    (tensor,) = pending.memories
    assert pending.gpu == f"GPU-{UUID}"
    assert (tensor.handle, tensor.offset) == (HANDLE, 2048)
    assert tensor.counter == ("/torch_77_1_2", 5)


def test_driver_handles() -> None:
    data = RawCudaIPCData(
        version=1, metadata=metadata(), ipc_handle=HANDLE, alloc_offset=4096, nbytes=131_072
    )
    (tensor,) = described(RawCudaIPCWrapper.from_wire(data)).memories
    assert (tensor.handle, tensor.offset, tensor.counter) == (HANDLE, 4096, None)


def test_virtual_memory_is_refused_with_what_to_do() -> None:
    fields: dict[str, Any] = {"alloc_size": 131_072, "alloc_offset": 0, "nbytes": 131_072}
    data = VmmCudaIPCData(
        version=1, metadata=metadata(), export_id=bytes(16), kind="fabric",
        fabric_blob=bytes(64), **fields,
    )  # fmt: skip
    refusal = described(VmmCudaIPCWrapper.from_wire(data)).refusal
    assert "--enable-sleep-mode" in refusal
