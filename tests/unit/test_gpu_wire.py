"""Handles of GPU memory as they come over the wire, without unpickling; and the kernels' PTX."""

from __future__ import annotations

import pickle
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.wire.ipc import GpuTensor, decode_tensor, memory_handle
from sidecar.wire.messages import BadPayload

METADATA = {
    "dtype": "bfloat16", "shape": [8, 2, 16, 256], "stride": [8192, 4096, 256, 1],
    "storage_offset": 0, "device_uuid": "8a5e7a3c-1111-2222-3333-444455556666",
}  # fmt: skip
HANDLE = bytes(range(64))
COMMON = {"version": 1, "metadata": METADATA}
KERNELS = Path(__file__).parents[2] / "sidecar" / "engines" / "cuda"


def decode(body: bytes) -> Any:
    return decode_tensor(msgspec.msgpack.Ext(1, body))


def torch_tensor(memory: Any, size: Any = 131_072) -> Any:
    handle = [0, memory, size, 512, b"/torch_1_2", 3, bytes(64), False]
    return decode(msgspec.msgpack.encode({"type": "cuda", **COMMON, "handle": handle}))


def raw_tensor(memory: Any) -> Any:
    fields = {"ipc_handle": memory, "alloc_offset": 512, "nbytes": 131_072}
    return decode(msgspec.msgpack.encode({"type": "cuda_raw", **COMMON, **fields}))


@pytest.mark.parametrize("memory", [HANDLE, b"\1c" + HANDLE, b"\2c" + HANDLE, b"\3c" + HANDLE])
def test_the_driver_s_handle_with_and_without_torch_s_prefix(memory: bytes) -> None:
    tensor = torch_tensor(memory)
    assert isinstance(tensor, GpuTensor)
    assert memory_handle(tensor) == HANDLE
    assert tensor.nbytes == 131_072
    assert memory_handle(raw_tensor(HANDLE)) == HANDLE


@pytest.mark.parametrize(
    "memory", [None, b"", HANDLE[:-1], b"\2e" + HANDLE, b"\2x" + HANDLE, b"\2c" + HANDLE + b"x"]
)
def test_other_handles_are_refused(memory: Any) -> None:
    with pytest.raises(BadPayload):
        memory_handle(torch_tensor(memory))


def test_memory_that_cuda_ipc_cannot_share_is_refused_with_what_to_do() -> None:
    vmm = {"type": "cuda_vmm", **COMMON, "export_id": bytes(16)}
    with pytest.raises(
        BadPayload, match=r"without expandable_segments.*--no-enable-cumem-allocator"
    ):
        decode(msgspec.msgpack.encode(vmm))
    with pytest.raises(
        BadPayload, match=r"without expandable_segments.*--no-enable-cumem-allocator"
    ):
        memory_handle(torch_tensor(b"\2e" + HANDLE))


@pytest.mark.parametrize("size", [-1, 2**49, "1", None])
def test_sizes_are_checked(size: Any) -> None:
    with pytest.raises(BadPayload):
        torch_tensor(HANDLE, size)


def test_raw_handles_have_64_bytes() -> None:
    with pytest.raises(BadPayload):
        raw_tensor(HANDLE[:-1])


def test_a_pickle_is_refused_unread() -> None:
    with pytest.raises(BadPayload, match="pickled"):
        decode(pickle.dumps(HANDLE, protocol=4))


def assemblers() -> list[str]:
    """ptxas of Triton and of a toolkit."""
    triton = find_spec("triton")
    found = [shutil.which("ptxas")]
    if triton is not None and triton.origin is not None:
        folder = Path(triton.origin).parent / "backends" / "nvidia" / "bin"
        found.append(shutil.which("ptxas", path=str(folder)))
    return [path for path in found if path is not None]


@pytest.mark.parametrize("kernel", sorted(KERNELS.glob("*.cu")), ids=lambda path: path.stem)
@pytest.mark.parametrize("gpu", ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"])
def test_the_kernels_are_valid_for_every_gpu(gpu: str, kernel: Path, tmp_path: Path) -> None:
    if not assemblers():
        pytest.skip("needs ptxas (of Triton or a CUDA toolkit)")
    output = ["-o", str(tmp_path / "out")]
    source = str(kernel.with_suffix(".ptx"))
    subprocess.run([assemblers()[0], f"-arch={gpu}", *output, source], check=True)
