"""A GPU worker that is in the middle of stores until somebody kills it.

Usage: python -m tests.gpu.victim URL MODEL MIB KIND. Prints a line once under way. KIND `spins`:
the event of its store is behind a kernel that runs for minutes.
"""

from __future__ import annotations

import os
import sys

import torch

from tests.gpu.device import on_gpu, spin
from tests.support.client import Worker, tokens_of
from tests.support.layouts import FUSED

CHUNK = 64


def main() -> None:
    url, model, mib, kind = sys.argv[1:]
    blocks = 48
    # A layer of 48 blocks of 128 bytes times the head size.
    cache = on_gpu(FUSED, layers=4, blocks=blocks, size=int(mib) * (1 << 20) // (4 * blocks * 128))
    worker = Worker(url, model, cache, chunk=CHUNK)
    worker.register()
    ids = [list(range(1, 41))]
    if kind == "spins":
        spin(120)
    pending = []
    for number in range(1_000_000):
        pending.append(worker.begin_store(tokens_of(1000 * os.getpid() + number, 10 * CHUNK), ids))
        if number == 3:
            print("under way", flush=True)
        if number > 3 and kind == "stores":
            pending.pop(0).result(60)
        if kind == "spins" and number == 3:
            torch.cuda.synchronize()


if __name__ == "__main__":
    main()
