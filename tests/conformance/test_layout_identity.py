"""Bytes are only given to a worker to which they mean the same; ranks may differ in layout."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.raw import RawClient, RawPool, RawWorker, make_key
from tests.support.server import Server

TOKENS = list(range(500, 500 + 128))


@pytest.fixture
def client(server: Server) -> Iterator[RawClient]:
    with RawClient(server.url) as client:
        yield client


def register(worker: RawWorker, groups: list[list[int]], world: int = 1) -> None:
    infos = [
        {"engine_group_id": i, "layer_indices": g, "recurrent_state": False}
        for i, g in enumerate(groups)
    ]
    payloads = worker.registration()
    payloads[3], payloads[6] = world, infos
    assert worker.client.call("register_kv_cache", *payloads) is None


def test_the_same_shapes_with_layers_in_other_groups_miss(client: RawClient) -> None:
    one = RawWorker(client, "grouped", 31_001)
    two = RawWorker(client, "grouped", 31_002)
    register(one, [[0], [1]])
    blocks = [list(range(1, 9))] * 2
    key = make_key(TOKENS, 0, 128, model="grouped")
    assert client.call("store", key, one.instance, blocks, b"e")[1] is True
    register(two, [[1], [0]])
    before = two.pool.data.copy()
    assert client.call("retrieve", key, two.instance, blocks, b"e", 0)[1] is False
    assert np.array_equal(before, two.pool.data)
    assert client.call("retrieve", key, one.instance, blocks, b"e", 0)[1] is True
    one.close()
    two.close()


def test_pipeline_stages_of_unequal_depth_hit(server: Server, client: RawClient) -> None:
    class DeepPool(RawPool):
        LAYERS = 3

    stages = [RawWorker(client, "stages", 31_011)]
    stages.append(RawWorker(client, "stages", 31_012, DeepPool(seed=2)))
    blocks = list(range(1, 9))
    for rank, stage in enumerate(stages):
        register(stage, [], world=2)
        key = make_key(TOKENS, 0, 128, model="stages", worker=rank, world=2)
        assert stage.store(key, blocks)[1] is True
    asked = make_key(TOKENS, 0, 128, model="stages", worker=None, world=2)
    assert stages[0].lookup(asked) == 128 // server.chunk_size
    for rank, stage in enumerate(stages):
        before = stage.pool.data[:, blocks].copy()
        stage.pool.data[:] = 0
        key = make_key(TOKENS, 0, 128, model="stages", worker=rank, world=2)
        assert stage.retrieve(key, blocks)[1] is True
        assert np.array_equal(before, stage.pool.data[:, blocks])
        stage.close()
