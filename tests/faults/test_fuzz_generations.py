"""Messages bred from valid ones of every release: each is answered, and the server still serves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.wire.generations import GENERATIONS, NEWEST, Generation
from tests.faults.test_fuzz import Fuzzer, seeds
from tests.support.hostile_pickles import hostile
from tests.support.old_pickles import SHM, Named, pickled, state_of
from tests.support.raw import RawClient, RawPool, encode
from tests.support.server import Server

BATCHES, BATCH = 2, 700  # of each generation
NEWER = ("num_kv_readers", "request_configs")  # in keys since 0.5.5
OLD = [each for each in GENERATIONS if each is not NEWEST]


def of_time(generation: Generation, name: str, payloads: list[Any]) -> list[Any]:
    """A valid request of today as this generation sends it."""
    made = [
        {name: item for name, item in each.items() if name not in NEWER}
        if isinstance(each, dict) and "token_ids" in each
        else each
        for each in payloads
    ]
    if name == "register_kv_cache" and generation.first < "0.4.7":
        return made[:6]
    if name in ("store", "retrieve") and generation.first < "0.4.7":
        made[2] = made[2][0]
    return [] if name == "ping" and not generation.names_worker_in_ping else made


def handles(pool: RawPool) -> list[msgspec.msgpack.Ext]:
    """The tensors of `pool` as clients before 0.5.6 describe them."""
    found = []
    for layer in range(pool.LAYERS):
        told = pool.descriptor(layer)
        metadata = told["metadata"]
        state = state_of(
            dtype=Named("torch", metadata["dtype"]),
            shape=tuple(metadata["shape"]),
            stride=tuple(metadata["stride"]),
            storage_offset=metadata["storage_offset"],
            shm_name=told["shm_name"],
            nbytes=told["nbytes"],
        )
        found.append(msgspec.msgpack.Ext(1, pickled((SHM, "CpuShmTensorWrapper"), state)))
    return found


class OldFuzzer(Fuzzer):
    """Breeds what clients of one generation send."""

    def __init__(self, generation: Generation, pool: RawPool, instance: int, seed: int) -> None:
        super().__init__(pool, instance, seed)
        frames = generation.table.operations().items()
        self.numbers = {operation.name: msgspec.msgpack.decode(op) for op, operation in frames}
        self.seeds = [
            (self.numbers[name], of_time(generation, name, payloads))
            for name, payloads in seeds(pool, instance)
            if name in self.numbers
        ]
        registration = of_time(generation, "register_kv_cache", self.registration(pool, instance))
        self.seeds += [(self.numbers["register_kv_cache"], registration)] * 2

    def registration(self, pool: RawPool, instance: int) -> list[Any]:
        return [instance, handles(pool), "fuzz", 1, "vllm", {"kv_layout": "HND"}, []]


def greet(client: RawClient, fuzzer: OldFuzzer) -> None:
    """The first question of a stock client, which tells its generation."""
    client.send([encode(0), encode(fuzzer.numbers["get_chunk_size"])])
    assert len(client.receive()) == 3


def batch(client: RawClient, fuzzer: OldFuzzer, first_uid: int) -> set[bytes]:
    """Send messages; the uids of those that name an operation."""
    uids = set()
    for number in range(BATCH):
        frames = fuzzer.message()
        if len(frames) >= 2 and frames[1]:
            frames[0] = encode(first_uid + number)
            uids.add(frames[0])
        if frames:
            client.send(frames)
    return uids


@pytest.mark.parametrize("generation", OLD, ids=lambda each: each.releases)
def test_messages_of_a_generation(
    generation: Generation, server: Server, still_serves: Callable[[], None]
) -> None:
    """Some refusals wait until the client has been told False by a ping."""
    instance = 500 + GENERATIONS.index(generation) * 10
    pool = RawPool(seed=instance)
    with RawClient(server.url) as client:
        fuzzer = OldFuzzer(generation, pool, instance, seed=instance)
        greet(client, fuzzer)
        ping = of_time(generation, "ping", [instance])
        for number in range(BATCHES):
            waiting = batch(client, fuzzer, 1 + number * BATCH)
            client.send(client.frames(fuzzer.numbers["ping"], *ping))
            while waiting:
                waiting.discard(client.receive(60)[0])
            assert server.running, server.stderr()
        for name in ("unregister_kv_cache", "unregister_kv_cache_engine_driven_context"):
            if name in fuzzer.numbers:
                client.call(fuzzer.numbers[name], instance + name.endswith("context"))
    pool.unlink()
    still_serves()


@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda each: each.releases)
def test_hostile_pickles_cost_a_refusal_each(
    generation: Generation, server: Server, tmp_path: Path, still_serves: Callable[[], None]
) -> None:
    """Those of the newest table, too: 0.5.5 still pickles."""
    canary = tmp_path / "canary"
    pickles = hostile(canary)
    pool, instance = RawPool(), 900 + GENERATIONS.index(generation)
    before = server.status()["refusals"].get("bad_registration", 0)
    with RawClient(server.url) as client:
        fuzzer = OldFuzzer(generation, pool, instance, seed=1)
        greet(client, fuzzer)
        for body in pickles.values():
            registration = fuzzer.registration(pool, instance)
            registration[1] = [msgspec.msgpack.Ext(1, body)]
            payloads = of_time(generation, "register_kv_cache", registration)
            assert client.call(fuzzer.numbers["register_kv_cache"], *payloads) is None
    assert server.status()["refusals"]["bad_registration"] - before == len(pickles)
    assert not canary.exists()
    pool.unlink()
    still_serves()
