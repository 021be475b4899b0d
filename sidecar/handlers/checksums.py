"""Digests of a worker's blocks, for who compares what lies in two workers' memory."""

import contextlib
import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from typing import Any

import numpy as np
import numpy.typing as npt

from sidecar.engines.copier import CopyPool
from sidecar.engines.host import HostWorker
from sidecar.engines.layout import LayerLayout

# What a copy thread does for it before transfers that wait get their turn.
_TURN_SECONDS = 0.01
_READ_BYTES = 4 << 20


class Hashing:
    """MD5 of `block_ids`, `blocks_per_chunk` of them a digest, over all layers or by layer.

    `future` gets {"chunk_checksums": ...}. Loop thread.
    """

    def __init__(
        self,
        copies: CopyPool,
        host: HostWorker,
        block_ids: Sequence[int],
        blocks_per_chunk: int,
        layerwise: bool,
    ) -> None:
        self.future: Future[dict[str, Any]] = Future()
        self._copies = copies
        starts = range(0, len(block_ids), blocks_per_chunk)
        chunks = [np.array(block_ids[at : at + blocks_per_chunk], np.int64) for at in starts]
        self._reads = _reads(host, chunks)
        self._layerwise = layerwise
        layers = len(host.layers) if layerwise else 1
        self._digests = [
            [hashlib.md5(usedforsecurity=False) for _ in chunks] for _ in range(layers)
        ]

    def go_on(self) -> None:
        """Hash for a moment on a copy thread, and go on after the transfers that wait then."""
        self._copies.submit([self._turn], self._turn_ended)

    def _turn(self) -> None:
        began = time.monotonic()
        for chunk, layer, read in self._reads:
            self._digests[layer if self._layerwise else 0][chunk].update(read)
            if time.monotonic() - began > _TURN_SECONDS:
                return
        self._reads = iter(())
        digests = [[each.hexdigest() for each in of_layer] for of_layer in self._digests]
        by_layer = {f"layer_{number}": of_layer for number, of_layer in enumerate(digests)}
        with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
            result = by_layer if self._layerwise else digests[0]
            self.future.set_result({"chunk_checksums": result})

    def _turn_ended(self, ok: bool) -> None:
        if self.future.done():
            return
        if ok:
            self.go_on()
        else:
            self.future.set_exception(RuntimeError("the blocks could not be read"))


def _reads(
    host: HostWorker, chunks: Sequence[npt.NDArray[np.int64]]
) -> Iterator[tuple[int, int, bytes]]:
    """Numbers of chunk and layer, and the next bytes of it; bfloat16 widened to float32, as the
    stock server does.
    """
    for chunk, blocks in enumerate(chunks):
        for number, layer in enumerate(host.layers):
            for plane in range(len(layer.planes)):
                step = max(1, _READ_BYTES // layer.planes[plane].run)
                for at in range(0, len(blocks), step):
                    read = host.read(layer, plane, blocks[at : at + step])
                    yield chunk, number, _widened(layer, read).tobytes()


def _widened(layer: LayerLayout, read: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    if layer.dtype != "bfloat16":
        return read
    return read.view(np.uint16).astype(np.uint32) << 16
