"""Inference as it loads a GPU, beside a measurement: context managers that give a step of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bench.gpu.background import Step

_SEQUENCES = 16


@contextmanager
def decode(device: str = "cuda", layers: int = 32, width: int = 4096) -> Iterator[Step]:
    """A token of 16 sequences: bound by reading 3 GB of weights, in kernels of some 40 us."""
    scale = width**-0.5
    weights = [_random(width, 3 * width, device) * scale for _ in range(layers)]
    first = _random(_SEQUENCES, width, device)

    def step() -> None:
        hidden = first
        for weight in weights:
            hidden = (hidden @ weight)[:, :width]
        _wait(device)

    yield step


@contextmanager
def prefill(device: str = "cuda", products: int = 8, width: int = 8192) -> Iterator[Step]:
    """Some 10 ms of matrix products that fill the GPU."""
    left, right = _random(width, width, device), _random(width, width, device)
    out = torch.empty_like(left)

    def step() -> None:
        for _ in range(products):
            torch.mm(left, right, out=out)
        _wait(device)

    yield step


def _random(rows: int, columns: int, device: str) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.bfloat16, device=device)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
