"""What the link gives: pinned memory copied by cudaMemcpyAsync, nothing else in the way."""

from __future__ import annotations

import time

import torch

Rates = dict[str, float]


def rates(nbytes: int, repeats: int) -> Rates:
    """GB/s of copies of `nbytes` bytes: store (from the GPU), load, and both at once in all."""
    device = [torch.empty(nbytes, dtype=torch.uint8, device="cuda") for _ in range(2)]
    host = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]

    def copy(directions: tuple[int, ...]) -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(repeats):
            for direction in directions:
                to, source = (host, device) if direction == 0 else (device, host)
                with torch.cuda.stream(streams[direction]):
                    to[direction].copy_(source[direction], non_blocking=True)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        return len(directions) * repeats * nbytes / seconds / 1e9

    names = {"store": (0,), "load": (1,), "both": (0, 1)}
    for directions in names.values():
        copy(directions)
    return {name: copy(directions) for name, directions in names.items()}
