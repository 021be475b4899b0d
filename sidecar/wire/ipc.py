"""Device-handle descriptors: the msgpack ext bodies by which a worker names its tensors.

lmcache 0.5.6 sends data-only msgpack maps, decoded here strictly. What older clients send is read
into such maps first (`pickled_handles.py`).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sidecar.wire.messages import BadPayload
from sidecar.wire.pickled_handles import read_pickled_handle

EXT_DEVICE_HANDLE = 1
_PICKLE_PROTOCOL_MARK = b"\x80"
MAX_DIMS = 8

_Extent = Annotated[int, Meta(ge=0, le=2**48)]
_Extents = Annotated[list[_Extent], Meta(min_length=1, max_length=MAX_DIMS)]


class TensorMetadata(msgspec.Struct, forbid_unknown_fields=True):
    """Shape, strides and offset in elements; dtype as torch names it, without "torch."."""

    dtype: Annotated[str, Meta(max_length=32)]
    shape: _Extents
    stride: _Extents
    storage_offset: _Extent
    device_uuid: Annotated[str, Meta(max_length=128)]


class CpuShmTensor(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="cpu_shm"):
    """A tensor in a POSIX shared-memory segment of the worker; `nbytes` is the segment's."""

    version: Literal[1]
    metadata: TensorMetadata
    shm_name: Annotated[str, Meta(max_length=255)]
    nbytes: _Extent


_Torch = tuple[int, bytes | None, _Extent, _Extent, bytes | None, _Extent, bytes | None, bool]


class CudaTensor(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="cuda"):
    """A tensor in a storage that torch shares.

    `handle` is what `UntypedStorage._share_cuda_` gives: device ordinal, memory handle, size and
    offset of the storage in its allocation, file and index of the reference counter, an event
    and whether it counts.
    """

    version: Literal[1]
    metadata: TensorMetadata
    handle: _Torch

    @property
    def nbytes(self) -> int:
        return self.handle[2]


class RawCudaTensor(msgspec.Struct, forbid_unknown_fields=True, tag_field="type", tag="cuda_raw"):
    """A tensor `alloc_offset` bytes into an allocation of the driver's (isolated_ipc)."""

    version: Literal[1]
    metadata: TensorMetadata
    ipc_handle: Annotated[bytes, Meta(min_length=64, max_length=64)]
    alloc_offset: _Extent
    nbytes: _Extent


class _VmmTensor(msgspec.Struct, tag_field="type", tag="cuda_vmm"):
    """Memory of the driver's virtual memory management, of which CUDA IPC knows nothing."""


GpuTensor = CudaTensor | RawCudaTensor
_Tensor = CpuShmTensor | GpuTensor | _VmmTensor
_decoder: msgspec.msgpack.Decoder[_Tensor] = msgspec.msgpack.Decoder(_Tensor)
_VMM = (
    "virtual CUDA memory cannot be shared: start the worker without expandable_segments, without "
    "--enable-sleep-mode, and with --no-enable-cumem-allocator"
)
# Newer torch puts a version and a type before the handle: c = cudaMalloc, e = expandable segment.
_MEMORY_HANDLE_BYTES = 64
_PREFIX_BYTES = 2


def decode_tensor(ext: msgspec.msgpack.Ext) -> CpuShmTensor | GpuTensor:
    """The descriptor in `ext`. Raises BadPayload for another device or any misfit."""
    if ext.code != EXT_DEVICE_HANDLE:
        raise BadPayload(f"unknown ext code {ext.code}")
    body = bytes(ext.data)
    try:
        if body.startswith(_PICKLE_PROTOCOL_MARK):
            tensor: _Tensor = msgspec.convert(read_pickled_handle(body), _Tensor)
        else:
            tensor = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadPayload(f"tensor handle: {error}") from None
    if isinstance(tensor, _VmmTensor):
        raise BadPayload(_VMM)
    if len(tensor.metadata.shape) != len(tensor.metadata.stride):
        raise BadPayload("tensor handle: shape and stride differ in length")
    return tensor


def memory_handle(tensor: GpuTensor) -> bytes:
    """The driver's handle (64 bytes) of the allocation. Raises BadPayload if there is none."""
    if isinstance(tensor, RawCudaTensor):
        return tensor.ipc_handle
    handle = tensor.handle[1] or b""
    kind = handle[1:_PREFIX_BYTES]
    if len(handle) == _MEMORY_HANDLE_BYTES:
        return handle
    if kind == b"e":
        raise BadPayload(_VMM)
    if len(handle) != _PREFIX_BYTES + _MEMORY_HANDLE_BYTES or kind != b"c":
        raise BadPayload(f"a memory handle of {len(handle)} bytes, type {kind!r}")
    return handle[_PREFIX_BYTES:]
