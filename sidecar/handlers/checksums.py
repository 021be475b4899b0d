"""Digests of a worker's blocks, as `lmcache bench server` compares them."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.engines.host import HostWorker
from sidecar.engines.layout import LayerLayout

Planes = list[npt.NDArray[np.uint8]]


def block_checksums(
    host: HostWorker, block_ids: Sequence[int], blocks_per_chunk: int, layerwise: bool
) -> dict[str, Any]:
    """MD5 of these blocks, `blocks_per_chunk` of them a digest, over all layers or by layer.

    bfloat16 is widened to float32 first, as the stock server does. For copy threads.
    """
    layers = [
        _widened(layer, planes) for layer, planes in host.read_layers(np.array(block_ids, np.int64))
    ]
    starts = range(0, len(block_ids), blocks_per_chunk)
    chunks = [slice(start, start + blocks_per_chunk) for start in starts]
    digests: Any = [_md5(layers, chunk) for chunk in chunks]
    if layerwise:
        digests = {f"layer_{i}": [_md5([p], c) for c in chunks] for i, p in enumerate(layers)}
    return {
        "status": "success",
        "chunk_size": blocks_per_chunk,
        "num_chunks": len(chunks),
        "chunk_checksums": digests,
        "layerwise": layerwise,
    }


def _md5(layers: list[Planes], chunk: slice) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for planes in layers:
        for plane in planes:
            digest.update(plane[chunk].tobytes())
    return digest.hexdigest()


def _widened(layer: LayerLayout, planes: Planes) -> Planes:
    if layer.dtype != "bfloat16":
        return planes
    return [(p.view(np.uint16).astype(np.uint32) << 16).view(np.uint8) for p in planes]
