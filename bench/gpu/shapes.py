"""The KV caches that are measured: runs of one length, and models as vLLM lays them out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from bench.client import BLOCK_TOKENS, CHUNK_TOKENS, Layout, Pool

REQUEST_BYTES = 256 << 20
_LAYERS, _HEAD_SIZE = 32, 128
_HEAD_KIB = 4  # of one head in one plane of a block: 16 tokens of 128 fp16 numbers


@dataclass(frozen=True)
class Shape:
    """Heads a rank; 0 is MLA, whose blocks of 16 tokens are one run of 18 KiB a layer."""

    name: str
    run_kib: int
    layers: int
    heads: int
    request_bytes: int = REQUEST_BYTES

    @property
    def token_bytes(self) -> int:
        planes = 2 if self.heads else 1
        return self.layers * planes * self.run_kib * 1024 // BLOCK_TOKENS

    @property
    def tokens(self) -> int:
        """Whole chunks of about `request_bytes`."""
        return max(1, self.request_bytes // (self.token_bytes * CHUNK_TOKENS)) * CHUNK_TOKENS

    @property
    def nbytes(self) -> int:
        """Of one request."""
        return self.tokens * self.token_bytes


RUNS = tuple(
    Shape(f"runs of {kib} KiB", kib, _LAYERS, kib // _HEAD_KIB) for kib in (4, 16, 32, 64, 256)
)
MODELS = (
    Shape("Llama-3.1-8B TP1", 32, 32, 8),
    Shape("Llama-3.1-8B TP4", 8, 32, 2),
    Shape("DeepSeek-V3 MLA", 18, 61, 0),
)


class GpuPool(Pool):
    """A worker's blocks on the GPU: room for one request to store and one to fill, and block 0."""

    def __init__(self, shape: Shape, device: str = "cuda") -> None:
        self._device, self._shape = device, shape
        blocks = 1 + 2 * shape.tokens // BLOCK_TOKENS
        super().__init__(Layout(shape.name, shape.layers, shape.heads, _HEAD_SIZE, blocks))

    def _random_layer(self) -> torch.Tensor:
        blocks, run = self.layout.blocks, self._shape.run_kib * 1024
        planes = 2 if self._shape.heads else 1
        words = self._random.integers(0, 2**63, planes * blocks * run // 8)
        layer = torch.from_numpy(words).to(self._device).view(torch.float16)
        if not self._shape.heads:
            return layer.view(blocks, BLOCK_TOKENS, -1)
        return layer.view(2, blocks, BLOCK_TOKENS, self._shape.heads, _HEAD_SIZE)

    def _blocks_second(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, words in super()._blocks_second():
            yield name, words if self._shape.heads else words.unsqueeze(0)
