"""The kernel `sum_objects` in numpy, for the fake GPU: the long part of xxh3."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from sidecar.engines.cuda.digest import SECRET

Words = npt.NDArray[np.uint64]

_BLOCK, _STRIPE = 1024, 64
_SECRET = np.frombuffer(SECRET, np.uint64)
_KEYS = np.lib.stride_tricks.sliding_window_view(_SECRET, 8)  # by stripe, each of 8 words
_SCRAMBLE, _LAST = _KEYS[16], np.frombuffer(SECRET[121:185], np.uint64)
_PRIME32_1, _LOW, _HIGH, _SHIFT = (np.uint64(n) for n in (0x9E3779B1, 2**32 - 1, 32, 47))
_START = (
    0xC2B2AE3D, 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9,
    0x85EBCA77C2B2AE63, 0x85EBCA77, 0x27D4EB2F165667C5, 0x9E3779B1,
)  # fmt: skip


def sums_of(data: bytes) -> Words:
    """The eight accumulators over more than 240 bytes, before they are merged."""
    blocks = (len(data) - 1) // _BLOCK
    sums, end = np.array(_START, np.uint64), blocks * _BLOCK
    for added in _added(data[:end], _KEYS[:16]):
        sums += added
        sums = (sums ^ sums >> _SHIFT ^ _SCRAMBLE) * _PRIME32_1
    rest = (len(data) - 1 - end) // _STRIPE
    for added in _added(data[end : end + rest * _STRIPE], _KEYS[:rest]):
        sums += added
    return sums + _added(data[-_STRIPE:], _LAST[None])[0]


def _added(data: bytes, keys: Words) -> Words:
    """What each block, of as many stripes as there are keys, adds: 8 words a block."""
    if not data:
        return np.empty((0, 8), np.uint64)
    words = np.frombuffer(data, np.uint64).reshape(-1, len(keys), 8)
    keyed = words ^ keys
    neighbours = words.reshape(*words.shape[:2], 4, 2)[..., ::-1].reshape(words.shape)
    return (neighbours + (keyed & _LOW) * (keyed >> _HIGH)).sum(axis=1, dtype=np.uint64)
