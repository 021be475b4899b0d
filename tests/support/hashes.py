"""Chunk hashes as the server makes them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sidecar.cache.keys import chunk_hashes
from tests.support.server import CHUNK_SIZE


def hashes_of(tokens: Sequence[int], chunk_size: int = CHUNK_SIZE) -> list[bytes]:
    """Of all whole chunks."""
    encoded = np.array(tokens, ">u4").tobytes()
    return chunk_hashes([], encoded, chunk_size, len(tokens) // chunk_size)
