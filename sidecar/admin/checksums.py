"""The body and the reply of ``POST /cache/checksums``."""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

MOST_BLOCKS = 4096


class ChecksumRequest(BaseModel):
    """Which blocks of which worker to hash, each once; ``chunk_size`` counts blocks, not tokens."""

    model_config = ConfigDict(extra="forbid", strict=True)

    block_ids: list[int] = Field(min_length=1, max_length=MOST_BLOCKS)
    chunk_size: int = Field(ge=1)
    instance_id: int
    layerwise: bool = False


def reply(request: ChecksumRequest, hashed: dict[str, Any]) -> dict[str, Any]:
    """The digests with what they were made of."""
    return {
        "status": "success",
        "chunk_size": request.chunk_size,
        "num_chunks": -(-len(request.block_ids) // request.chunk_size),
        "chunk_checksums": hashed["chunk_checksums"],
        "layerwise": request.layerwise,
        "block_id_ranges": ranges(request.block_ids),
    }


def ranges(ids: Sequence[int]) -> list[int | list[int]]:
    """Runs of three or more consecutive ids as ``[first, last]``, in the order given."""
    found: list[int | list[int]] = []
    start = 0
    for end in range(1, len(ids) + 1):
        if end < len(ids) and ids[end] == ids[end - 1] + 1:
            continue
        run = list(ids[start:end])
        found += [[run[0], run[-1]]] if len(run) > 2 else run
        start = end
    return found
