"""The long part of xxh3_128, written down from its specification: what the kernel is to do."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
START = np.array(
    [
        *(0xC2B2AE3D, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9),
        *(0x85EBCA77C2B2AE63, 0x85EBCA77, 0x27D4EB2F165667C5, 0x9E3779B1),
    ],
    np.uint64,
)


def sums(data: bytes) -> list[int]:
    """The eight accumulators after all stripes of `data`, which is longer than 240 bytes."""
    blocks = (len(data) - 1) // 1024
    left = (len(data) - 1 - 1024 * blocks) // 64
    accumulators = START.copy()
    for block in range(blocks):
        accumulators += _stripes(data, 1024 * block, 16)
        accumulators ^= accumulators >> np.uint64(47)
        accumulators ^= _keys(128)
        accumulators *= START[7]
    accumulators += _stripes(data, 1024 * blocks, left)
    accumulators += _mixed(_words(data, len(data) - 64, 1), _keys(121)[None])
    return accumulators.tolist()  # type: ignore[no-any-return]


def _stripes(data: bytes, offset: int, count: int) -> Words:
    keys = np.array([_keys(8 * i) for i in range(count)], np.uint64).reshape(count, 8)
    return _mixed(_words(data, offset, count), keys)


def _mixed(values: Words, keys: Words) -> Words:
    """What stripes [n, 8] add to the accumulators, all of them together."""
    keyed = values ^ keys
    products = (keyed & np.uint64(0xFFFFFFFF)) * (keyed >> np.uint64(32))
    neighbours = values.reshape(-1, 4, 2)[:, :, ::-1].reshape(-1, 8)
    return (products + neighbours).sum(axis=0, dtype=np.uint64)  # type: ignore[no-any-return]


def _words(data: bytes, offset: int, count: int) -> Words:
    return np.frombuffer(data, np.uint64, 8 * count, offset).reshape(count, 8)


def _keys(offset: int) -> Words:
    return np.frombuffer(SECRET[offset : offset + 64], np.uint64)
