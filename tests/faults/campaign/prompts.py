"""The honest clients' prompts: what a number's tokens are, and every byte of its KV."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from tests.faults.campaign.target import CHUNK

CHUNKS = 3
CHUNK_BYTES = 8192  # of an object of both workers
PROMPTS = 100


def tokens_of(number: int) -> list[int]:
    """Prompts by the dozen share their first chunk."""
    shared = [number // 12 % 100 + 1] * CHUNK
    return [*shared, *(number * 1000 + place for place in range((CHUNKS - 1) * CHUNK))]


@functools.lru_cache(maxsize=4 * PROMPTS)
def kv_of(model: str, number: int, chunk: int) -> npt.NDArray[np.uint8]:
    """What a model computes for a chunk: [CHUNK_BYTES]. One that is shared has one content."""
    prompt = number // 12 if chunk == 0 else number
    seed = [len(model), prompt, chunk]
    return np.random.default_rng(seed).integers(0, 256, CHUNK_BYTES, dtype=np.uint8)
