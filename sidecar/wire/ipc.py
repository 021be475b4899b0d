"""Device-handle descriptors: the msgpack ext bodies by which a worker names its tensors.

lmcache 0.5.6 sends data-only msgpack maps, decoded here strictly. Older clients send
pickles, which are refused unread: unpickling is code execution for whoever reaches the port.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from sidecar.wire.messages import BadPayload

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


_decoder = msgspec.msgpack.Decoder(CpuShmTensor)


def decode_tensor(ext: msgspec.msgpack.Ext) -> CpuShmTensor:
    """The descriptor in `ext`. Raises BadPayload for a pickle, another device or any misfit."""
    if ext.code != EXT_DEVICE_HANDLE:
        raise BadPayload(f"unknown ext code {ext.code}")
    body = bytes(ext.data)
    if body.startswith(_PICKLE_PROTOCOL_MARK):
        raise BadPayload("pickled tensor handle refused (lmcache 0.5.6 or later sends data)")
    try:
        tensor = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadPayload(f"tensor handle: {error}") from None
    if len(tensor.metadata.shape) != len(tensor.metadata.stride):
        raise BadPayload("tensor handle: shape and stride differ in length")
    return tensor
