"""A worker until somebody kills it: `python -m tests.gpu.quick.victim URL NUMBER KIND`.

It prints a line once under way. KIND `stores`: it is in the middle of stores; `held`: its store
waits for an event that never happens.
"""

from __future__ import annotations

import sys
import time

from tests.gpu.quick.gpu import MIB, SMALL, Gpu
from tests.gpu.quick.site import BLOCKS_A_CHUNK, Blocks, Worker, key_of
from tests.support.raw import RawClient

_RUN, _LAYERS = 64 << 10, 4
_BLOCKS = (8 if SMALL else 64) * MIB // (_RUN * _LAYERS)


def main() -> None:
    url, number, kind = sys.argv[1:]
    gpu, client = Gpu(), RawClient(url)
    worker = Worker(client, Blocks(gpu, _RUN, _BLOCKS, _LAYERS), 1000 + int(number))
    chunks = _BLOCKS // BLOCKS_A_CHUNK - 1
    ids = range(1, chunks * BLOCKS_A_CHUNK + 1)
    if kind == "held":
        gpu.hold(gpu.stream)
        client.send(worker.frames("store", key_of(int(number) << 20, chunks), ids))
        print("under way", flush=True)
        time.sleep(600)
    for turn in range(1, 1 << 20):
        client.send(worker.frames("store", key_of((int(number) << 20) + turn, chunks), ids))
        if turn == 1:
            print("under way", flush=True)
        client.receive()


if __name__ == "__main__":
    main()
