"""Tensor shapes and hints -> where block b of layer l lies.

A block's bytes are moved verbatim, so all that matters of a format is which dimension counts
blocks and which runs of bytes belong to one block. The rest (heads before tokens or after, K
beside V or fused) only goes into the fingerprint, because it decides what the bytes mean.
Formats are numbered as in section 3 of the protocol notes.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

ITEM_BYTES = {
    "float64": 8, "int64": 8, "float32": 4, "int32": 4,
    "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2,
    "uint8": 1, "int8": 1, "bool": 1,
    "float8_e4m3fn": 1, "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1,
    "float8_e8m0fnu": 1, "float4_e2m1fn_x2": 1,
}  # fmt: skip
_MAX_PLANES = 1024
_DSA_INDEXER_BYTES = 132


class UnknownLayout(ValueError):
    """Tensors that cannot be told apart into blocks; the text says which and why."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A worker's tensor: shape, strides and offset in elements of `dtype`, in memory order."""

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int


@dataclass(frozen=True, slots=True)
class Plane:
    """One run of bytes a block: block b's starts at `base + b * stride` and is `run` long."""

    base: int
    stride: int
    run: int


@dataclass(frozen=True, slots=True)
class LayerLayout:
    """One tensor: its planes over `blocks` blocks of `slots` tokens, and its format."""

    tensor: int
    format_id: int
    format_name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: int
    slots: int
    planes: tuple[Plane, ...]

    @property
    def block_bytes(self) -> int:
        return sum(plane.run for plane in self.planes)


@dataclass(frozen=True, slots=True)
class Format:
    """How to read a shape: which dimensions count blocks and a block's tokens."""

    id: int
    name: str
    block_dim: int
    slot_dim: int


_NHD, _HND = "NHD", "HND"
_HINTS = {"NHD": _NHD, "BLNHC": _NHD, "HND": _HND, "BLHNC": _HND}
_K_FIRST = {_NHD: Format(1, "NL_X_TWO_NB_BS_NH_HS", 1, 2),
            _HND: Format(6, "NL_X_TWO_NB_NH_BS_HS", 1, 3)}  # fmt: skip
_BLOCK_FIRST = {_NHD: Format(2, "NL_X_NB_TWO_BS_NH_HS", 0, 2),
                _HND: Format(7, "NL_X_NB_TWO_NH_BS_HS", 0, 3)}  # fmt: skip
_FUSED = {_HND: Format(12, "NL_X_NB_NH_BS_CS", 0, 2),
          _NHD: Format(13, "NL_X_NB_BS_NH_CS", 0, 1)}  # fmt: skip
_MLA = Format(3, "NL_X_NB_BS_HS", 0, 1)
_INDEXER = Format(14, "NL_X_NB_BSV_BSS", 0, 1)
_INDEXER_HND = Format(14, "NL_X_NB_BSV_BSS", 0, 2)


def detect_format(spec: TensorSpec, hint: str | None) -> Format:
    """The format of a tensor. `hint` is the engine's `kv_layout`.

    Raises UnknownLayout if shape and hint leave it open.
    """
    if hint is not None and hint not in _HINTS:
        raise UnknownLayout(f"unknown kv_layout {hint!r}")
    shape, rank = spec.shape, len(spec.shape)
    if spec.dtype == "uint8" and shape[-1] == _DSA_INDEXER_BYTES and rank in (3, 4):
        unit_head_first = rank == 4 and shape[1] == 1
        return _INDEXER_HND if unit_head_first else _INDEXER
    if rank == 3:
        return _MLA
    if rank == 4:
        # Without a hint: the fused layout of vLLM's CPU build, which sends none.
        return _FUSED[_HINTS[hint] if hint else _HND]
    if rank == 5 and shape[0] == 2:
        return _K_FIRST[_HINTS[hint] if hint else _NHD]
    if rank == 5 and shape[1] == 2:
        return _BLOCK_FIRST[_HINTS[hint] if hint else _NHD]
    raise UnknownLayout(f"no format has the shape {list(shape)}")


def layer_layout(index: int, spec: TensorSpec, hint: str | None, nbytes: int) -> LayerLayout:
    """Where the blocks of tensor `index` lie in its segment of `nbytes` bytes.

    Raises UnknownLayout for a shape that is no format's, or that leaves the segment.
    """
    item = ITEM_BYTES.get(spec.dtype)
    if item is None:
        raise UnknownLayout(f"tensor {index}: unknown dtype {spec.dtype!r}")
    try:
        _check_extent(spec, item, nbytes)
        form = detect_format(spec, hint)
        planes = _planes(spec, item, form.block_dim)
    except UnknownLayout as error:
        raise UnknownLayout(f"tensor {index}: {error}") from None
    shape = tuple(n for d, n in enumerate(spec.shape) if d != form.block_dim)
    blocks, slots = spec.shape[form.block_dim], spec.shape[form.slot_dim]
    return LayerLayout(index, form.id, form.name, spec.dtype, shape, blocks, slots, planes)


def fingerprint(parts: Sequence[object]) -> bytes:
    """Sixteen bytes that differ whenever the bytes of an object would mean something else."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()


def _check_extent(spec: TensorSpec, item: int, nbytes: int) -> None:
    if 0 in spec.shape:
        raise UnknownLayout(f"empty shape {list(spec.shape)}")
    dims = [(n, s) for n, s in zip(spec.shape, spec.stride, strict=True) if n > 1]
    covered = 1
    for size, stride in reversed(dims):
        if stride < covered:
            raise UnknownLayout("strides overlap or are not in memory order")
        covered = size * stride
    last = spec.storage_offset + sum((n - 1) * s for n, s in dims)
    if (last + 1) * item > nbytes:
        raise UnknownLayout(f"shape and strides need {(last + 1) * item} of {nbytes} bytes")


def _planes(spec: TensorSpec, item: int, block_dim: int) -> tuple[Plane, ...]:
    """Split a block into the runs of bytes that are contiguous in memory, in memory order."""
    run, dims = 1, list(range(len(spec.shape)))
    while dims and dims[-1] != block_dim:
        size, stride = spec.shape[dims[-1]], spec.stride[dims[-1]]
        if size > 1 and stride != run:
            break
        run *= size
        dims.pop()
    outer = [d for d in dims if d != block_dim]
    if math.prod(spec.shape[d] for d in outer) > _MAX_PLANES:
        raise UnknownLayout("a block lies in too many pieces")
    block_stride = max(spec.stride[block_dim], run) * item
    steps = product(*(range(spec.shape[d]) for d in outer))
    return tuple(
        Plane(
            (spec.storage_offset + sum(i * spec.stride[d] for i, d in zip(at, outer, strict=True)))
            * item,
            block_stride,
            run * item,
        )
        for at in steps
    )
