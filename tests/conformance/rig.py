"""What most conformance cases do: make workers, move tokens, compare bytes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from tests.support.client import HANDLE, Scheduler, Worker, tokens_of
from tests.support.layouts import FUSED, KVCache, one_group
from tests.support.server import CHUNK_SIZE, Server

Blocks = Sequence[Sequence[int]]


class Rig:
    """Makes peers of one server under one model name and closes them all."""

    def __init__(self, server: Server, model: str) -> None:
        self.server, self.model = server, model
        self.chunk = server.chunk_size
        self.seed = zlib.crc32(model.encode())
        self._peers: list[Worker | Scheduler] = []

    def worker(
        self,
        cache: KVCache | None = None,
        mode: str = HANDLE,
        *,
        model: str | None = None,
        rank: int = 0,
        world: int = 1,
        readers: int = 1,
        register: bool = True,
    ) -> Worker:
        """A worker, registered unless told otherwise."""
        made = Worker(
            self.server.url,
            model or self.model,
            cache or one_group(FUSED, seed=self.seed % 1000 + rank),
            mode,
            rank=rank,
            world=world,
            readers=readers,
            chunk=self.chunk,
        )
        self._peers.append(made)
        if register:
            made.register()
        return made

    def scheduler(self, *, model: str | None = None, world: int = 1, readers: int = 1) -> Scheduler:
        made = Scheduler(self.server.url, model or self.model, world=world, readers=readers)
        self._peers.append(made)
        return made

    def tokens(self, chunks: int, variant: int = 0) -> tuple[int, ...]:
        """Random tokens of whole chunks, the same at every run."""
        return tokens_of(self.seed + variant, chunks * self.chunk)

    def blocks(self, worker: Worker, chunks: int, first: int = 1) -> list[list[int]]:
        """Consecutive block ids from `first` for `chunks` chunks, a list for each group."""
        counts = [chunks * self.chunk // g.tokens_per_block for g in worker.cache.groups]
        return [list(range(first, first + count)) for count in counts]

    def close(self) -> None:
        for peer in self._peers:
            peer.close()


def shuffled(ids: Sequence[int], seed: int) -> list[int]:
    """`ids` in a random order."""
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    return [ids[i] for i in order.tolist()]


def expect_moved(
    worker: Worker,
    before: dict[str, torch.Tensor],
    origin: dict[str, torch.Tensor],
    source: Blocks,
    target: Blocks,
) -> None:
    """The cache is `before`, but for `target`, which holds what `origin` held in `source`.

    Everything else, to the last byte, must be as it was.
    """
    now = worker.cache.image()
    for group, from_ids, to_ids in zip(worker.cache.groups, source, target, strict=True):
        for layer in group.layers:
            expected = before[layer].clone()
            expected[list(to_ids)] = origin[layer][list(from_ids)]
            assert torch.equal(now[layer], expected), f"{layer}: bytes differ"


def round_trip(rig: Rig, worker: Worker, chunks: int = 3) -> None:
    """Store from random blocks, find it, bring it back to other blocks and to the same ones."""
    scheduler = rig.scheduler(world=worker.world, readers=worker.readers)
    tokens = rig.tokens(chunks)
    everything = [
        shuffled(range(1, cache_blocks(worker, group)), rig.seed + group)
        for group in range(len(worker.cache.groups))
    ]
    counts = [len(ids) for ids in rig.blocks(worker, chunks)]
    source = [ids[:n] for ids, n in zip(everything, counts, strict=True)]
    target = [ids[n : 2 * n] for ids, n in zip(everything, counts, strict=True)]
    assert scheduler.lookup(tokens, "before") == 0
    origin = worker.cache.image()
    assert worker.store(tokens, source)
    assert_same(worker.cache.image(), origin)
    for blocks in (target, source):
        assert scheduler.lookup(tokens) == chunks
        worker.cache.wipe(blocks)
        before = worker.cache.image()
        assert worker.retrieve(tokens, blocks)
        expect_moved(worker, before, origin, source, blocks)
    scheduler.end()


def cache_blocks(worker: Worker, group: int) -> int:
    """How many blocks a group's tensors have."""
    described = worker.cache.groups[group]
    return int(worker.cache.tensors[described.layers[0]].shape[described.block_axis])


def assert_same(now: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> None:
    """Nothing was written."""
    for layer, image in before.items():
        assert torch.equal(now[layer], image), f"{layer} was written"


__all__ = ["CHUNK_SIZE", "Rig", "assert_same", "cache_blocks", "expect_moved", "round_trip"]
