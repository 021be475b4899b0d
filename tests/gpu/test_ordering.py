"""A store reads what the kernels before it wrote; a retrieve is there for the kernels after it."""

from __future__ import annotations

import gc

import pytest
import torch

from tests.conformance.rig import Rig
from tests.gpu.device import on_gpu, spin
from tests.support.client import Worker
from tests.support.footprint import Footprint
from tests.support.layouts import FUSED

pytestmark = pytest.mark.gpu


def fill(worker: Worker, value: float) -> None:
    for tensor in worker.cache.tensors.values():
        tensor.fill_(value)


def test_a_kernel_that_is_still_writing_when_the_store_arrives(rig: Rig) -> None:
    worker = rig.worker(on_gpu(FUSED))
    for turn in range(20):
        tokens, blocks = rig.tokens(2, turn), rig.blocks(worker, 2)
        fill(worker, -1.0)
        torch.cuda.synchronize()
        spin(0.1)
        fill(worker, float(turn))
        assert worker.store(tokens, blocks)
        fill(worker, -2.0)
        assert worker.retrieve(tokens, blocks)
        for tensor in worker.cache.tensors.values():
            assert (tensor[blocks[0]] == turn).all()


def test_a_retrieve_before_a_kernel_that_reads(rig: Rig) -> None:
    """And after one that still used the blocks: it may not write too early either."""
    worker = rig.worker(on_gpu(FUSED))
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    fill(worker, 3.0)
    assert worker.store(tokens, blocks)
    for _ in range(20):
        spin(0.05)
        fill(worker, -2.0)  # queued when the retrieve is sent
        assert worker.retrieve(tokens, blocks)
        sums = [tensor[blocks[0]].float().mean() for tensor in worker.cache.tensors.values()]
        assert all(float(mean) == 3.0 for mean in sums)


def test_events_leave_nothing_behind(rig: Rig) -> None:
    """A hundred thousand, exported by the worker and imported by the child."""
    worker = rig.worker(on_gpu(FUSED, layers=1, blocks=8))
    tokens, blocks = rig.tokens(1), rig.blocks(worker, 1)
    assert worker.store(tokens, blocks)

    def cycle(times: int) -> Footprint:
        for _ in range(times):
            assert worker.retrieve(tokens, blocks)
        gc.collect()
        return Footprint.of(rig.server)

    level = cycle(5000)
    cycle(95_000).assert_not_above(level)
