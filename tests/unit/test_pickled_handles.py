"""Pickled tensor handles are read as data, or refused; nothing of them is ever executed."""

from __future__ import annotations

import io
import pickletools
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.wire.ipc import CpuShmTensor, CudaTensor, RawCudaTensor, decode_tensor
from sidecar.wire.messages import BadPayload
from tests.support.hostile_pickles import hostile
from tests.support.old_pickles import (
    CUDA,
    OLD,
    SHM_TENSOR,
    TORCH_HANDLE,
    pickled,
    state_of,
)

GPU = "GPU-00000000-0000-0000-0000-000000000001"
RAW = {"_ipc_handle_reserved": b"h" * 64, "_alloc_offset": 512, "_nbytes": 128, "_opens": 0}


def decoded(body: bytes) -> Any:
    return decode_tensor(msgspec.msgpack.Ext(1, body))


def refusal(body: bytes) -> str:
    with pytest.raises(BadPayload) as caught:
        decoded(body)
    return str(caught.value)


def test_a_tensor_in_shared_memory() -> None:
    tensor = decoded(SHM_TENSOR)
    assert isinstance(tensor, CpuShmTensor)
    assert (tensor.shm_name, tensor.nbytes) == ("/lmcache_kv_1_2", 128)
    metadata = tensor.metadata
    assert (metadata.dtype, metadata.shape, metadata.stride) == ("float16", [2, 4, 8], [32, 8, 1])


@pytest.mark.parametrize("module", [OLD, CUDA])
def test_a_tensor_that_torch_shares(module: str) -> None:
    state = state_of(handle=TORCH_HANDLE, device_uuid=GPU, storage_offset=3)
    tensor = decoded(pickled((module, "CudaIPCWrapper"), state))
    assert isinstance(tensor, CudaTensor)
    assert tensor.handle == TORCH_HANDLE
    assert tensor.metadata.storage_offset == 3 and tensor.metadata.device_uuid == GPU


def test_a_tensor_in_an_allocation_of_the_drivers() -> None:
    tensor = decoded(pickled((CUDA, "RawCudaIPCWrapper"), state_of(device_uuid=GPU, **RAW)))
    assert isinstance(tensor, RawCudaTensor)
    assert (tensor.ipc_handle, tensor.alloc_offset, tensor.nbytes) == (b"h" * 64, 512, 128)


def test_one_that_does_not_say_where_it_begins_is_refused() -> None:
    """Up to 0.5.4: the handle is of the allocation, the tensor may lie anywhere in it."""
    raw = {key: value for key, value in RAW.items() if key not in ("_alloc_offset", "_opens")}
    body = pickled((OLD, "RawCudaIPCWrapper"), state_of(device_uuid=GPU, **raw))
    assert "_alloc_offset" in refusal(body)


def test_virtual_memory_is_refused_with_the_way_out() -> None:
    body = pickled((CUDA, "VmmCudaIPCWrapper"), state_of(_fd=None, _nbytes=1, handle=b"x"))
    assert "--enable-sleep-mode" in refusal(body)


@pytest.mark.parametrize("name", hostile(Path("x")))
def test_hostile_pickles_are_refused_and_not_executed(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    assert refusal(hostile(canary)[name])
    assert not canary.exists()


@given(st.integers(0, len(SHM_TENSOR) - 1), st.binary(max_size=8), st.integers(0, 8))
@settings(max_examples=500, deadline=None)
def test_damaged_pickles_are_read_or_refused(at: int, inserted: bytes, dropped: int) -> None:
    body = SHM_TENSOR[:at] + inserted + SHM_TENSOR[at + dropped :]
    try:
        tensor = decoded(body)
    except BadPayload:
        return
    assert isinstance(tensor, CpuShmTensor)


@given(st.lists(st.sampled_from(pickletools.opcodes), max_size=30), st.binary(max_size=60))
@settings(max_examples=500, deadline=None)
def test_random_opcodes_are_refused(opcodes: list[Any], arguments: bytes) -> None:
    out = io.BytesIO(b"\x80\x04")
    out.seek(2)
    for i, opcode in enumerate(opcodes):
        out.write(opcode.code.encode("latin-1") + arguments[i : i + 2])
    refusal(out.getvalue())
