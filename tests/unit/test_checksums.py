"""Blocks are hashed a moment at a time, so that transfers have their turn."""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from sidecar.engines.layout import LayerLayout, Plane
from sidecar.handlers import checksums
from sidecar.handlers.checksums import Hashing

RUN = 1 << 16


class Host:
    """Two layers with one plane each; a block's bytes say which it is."""

    def __init__(self) -> None:
        planes = (Plane(0, RUN, RUN),)
        self.layers = [LayerLayout(n, 12, "", "float16", (), 10, 1, planes) for n in (0, 1)]
        self.largest = 0

    def read(self, layer: LayerLayout, plane: int, blocks: Any) -> Any:
        self.largest = max(self.largest, len(blocks))
        return np.stack([np.full(RUN, 10 * layer.tensor + block, np.uint8) for block in blocks])


class Copies:
    """Runs what is submitted when a test says so."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Sequence[Callable[[], None]], Callable[[bool], None]]] = []

    def submit(self, pieces: Sequence[Callable[[], None]], on_done: Callable[[bool], None]) -> None:
        self.waiting.append((pieces, on_done))

    def turn(self, ok: bool = True) -> None:
        ((piece,), on_done) = self.waiting.pop(0)
        if ok:
            piece()
        on_done(ok)


def expected(blocks: Sequence[int], layers: Sequence[int]) -> str:
    parts = [bytes([10 * layer + block]) * RUN for layer in layers for block in blocks]
    return hashlib.md5(b"".join(parts)).hexdigest()


@pytest.mark.parametrize("layerwise", [False, True])
def test_a_turn_is_short_and_the_digests_are_right(
    monkeypatch: pytest.MonkeyPatch, layerwise: bool
) -> None:
    monkeypatch.setattr(checksums, "_TURN_SECONDS", 0)
    monkeypatch.setattr(checksums, "_READ_BYTES", 2 * RUN)
    host, copies = Host(), Copies()
    hashing = Hashing(copies, host, [1, 2, 3, 4, 5], 3, layerwise)  # type: ignore[arg-type]
    hashing.go_on()
    turns = 0
    while copies.waiting:
        assert not hashing.future.done()
        copies.turn()
        turns += 1
    assert turns > 6 and host.largest == 2
    chunks = ([1, 2, 3], [4, 5])
    if layerwise:
        digests: Any = {f"layer_{n}": [expected(chunk, [n]) for chunk in chunks] for n in (0, 1)}
    else:
        digests = [expected(chunk, [0, 1]) for chunk in chunks]
    assert hashing.future.result(0) == {"chunk_checksums": digests}


@pytest.mark.parametrize("why", ["nobody waits", "the server stops"])
def test_it_ends_early(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    monkeypatch.setattr(checksums, "_TURN_SECONDS", 0)
    copies = Copies()
    hashing = Hashing(copies, Host(), list(range(10)), 1, False)  # type: ignore[arg-type]
    hashing.go_on()
    copies.turn()
    if why == "nobody waits":
        hashing.future.cancel()
        copies.turn()
    else:
        copies.turn(ok=False)
        with pytest.raises(RuntimeError, match="could not be read"):
            hashing.future.result(0)
    assert not copies.waiting
