"""What workers are told of the L1, over the stock client's stream: subscribe_kv_events."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from tests.conformance.rig import Rig
from tests.support.hashes import hashes_of
from tests.support.raw import RawClient
from tests.support.server import CHUNK_SIZE, Server, wait_until

# First, because it skips where lmcache is absent.
from tests.support.client import Peer  # isort: skip

from lmcache.integration.vllm.vllm_multi_process_adapter import LMCacheMPWorkerAdapter
from lmcache.v1.multiprocess.custom_types import KVEventBatch, KVEventRecord

from sidecar.cache.keys import ROOT

MakeServer = Callable[..., Server]


class Reader:
    """A stock client's subscription, read as the stock worker reads it."""

    def __init__(self, peer: Peer, model: str, cursor: int = 0, instance: int = 4) -> None:
        self.batches: list[KVEventBatch] = []
        self._stream = peer.rpc.subscribe_kv_events(instance, model, cursor, 8)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def records(self) -> list[KVEventRecord]:
        return [record for batch in self.batches for record in batch.events]

    def held(self) -> set[bytes]:
        """What is there, as somebody sees who heeds all that was told."""
        held = set[bytes]()
        for batch in self.batches:
            held = set() if batch.lost else held
            for record in batch.events:
                if record.kind == "stored":
                    held.update(record.block_hashes)
                else:
                    held.difference_update(record.block_hashes)
        return held

    def wait_for(self, hashes: list[bytes]) -> None:
        wait_until(lambda: self.held() == set(hashes), f"{len(hashes)} chunks to be told")

    def _run(self) -> None:
        self.batches.extend(self._stream)

    def close(self) -> None:
        self._stream.close()
        self._thread.join(30)
        assert not self._thread.is_alive()


@pytest.fixture
def reader(rig: Rig) -> Iterator[Reader]:
    made = Reader(rig.scheduler(), rig.model)
    yield made
    made.close()


def test_stored_chunks_are_told_with_their_tokens(rig: Rig, reader: Reader) -> None:
    wait_until(lambda: reader.batches, "the first batch")
    assert not reader.records and reader.batches[0].enabled and not reader.batches[0].lost
    worker, tokens = rig.worker(), rig.tokens(3)
    assert worker.store(tokens, rig.blocks(worker, 3))
    hashes = hashes_of(tokens)
    reader.wait_for(hashes)
    assert [record.block_hashes for record in reader.records] == [[each] for each in hashes]
    assert [record.parent_block_hash for record in reader.records] == [None, *hashes[:2]]
    assert [tuple(record.token_ids) for record in reader.records] == [
        tokens[at : at + CHUNK_SIZE] for at in range(0, len(tokens), CHUNK_SIZE)
    ]
    assert {(r.kind, r.medium, r.model_name) for r in reader.records} == {
        ("stored", "CPU", rig.model)
    }
    numbers = [record.seq for record in reader.records]
    assert numbers == sorted(numbers)
    assert ROOT not in hashes


def test_what_is_cleared_is_told(rig: Rig, reader: Reader) -> None:
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens = rig.tokens(3)
    assert worker.store(tokens, rig.blocks(worker, 3))
    reader.wait_for(hashes_of(tokens))
    scheduler.clear()
    reader.wait_for([])
    assert worker.store(tokens, rig.blocks(worker, 3))
    reader.wait_for(hashes_of(tokens))


def test_all_ranks_must_have_a_chunk(rig: Rig, reader: Reader) -> None:
    workers = [rig.worker(rank=rank, world=2, readers=2) for rank in (0, 1)]
    tokens = rig.tokens(2)
    other = Reader(rig.scheduler(), "another model")
    assert workers[0].store(tokens, rig.blocks(workers[0], 2))
    one = rig.worker()  # what it stores is told in its turn: after nothing was told of the half
    assert one.store(rig.tokens(1, 1), rig.blocks(one, 1))
    reader.wait_for(hashes_of(rig.tokens(1, 1)))
    assert workers[1].store(tokens, rig.blocks(workers[1], 2))
    reader.wait_for(hashes_of(rig.tokens(1, 1)) + hashes_of(tokens))
    assert not other.records
    other.close()


def test_who_comes_later_is_told_what_is_there(rig: Rig, reader: Reader) -> None:
    worker = rig.worker()
    for number in range(3):
        assert worker.store(rig.tokens(4, number), rig.blocks(worker, 4))
    everything = [h for number in range(3) for h in hashes_of(rig.tokens(4, number))]
    reader.wait_for(everything)
    late = Reader(rig.scheduler(), rig.model, instance=5)
    late.wait_for(everything)
    assert not any(batch.lost for batch in late.batches)
    cursor = reader.batches[-1].next_cursor
    assert worker.store(rig.tokens(1, 9), rig.blocks(worker, 1))
    everything += hashes_of(rig.tokens(1, 9))
    late.wait_for(everything)
    # Who goes on where it stopped is told the rest alone; who has never been there, everything.
    goes_on = Reader(rig.scheduler(), rig.model, cursor, instance=6)
    goes_on.wait_for(hashes_of(rig.tokens(1, 9)))
    stranger = Reader(rig.scheduler(), rig.model, 10**9, instance=7)
    stranger.wait_for(everything)
    assert stranger.batches[0].lost
    for each in (late, goes_on, stranger):
        each.close()


def test_what_others_store_does_not_hide_ones_own(rig: Rig, reader: Reader) -> None:
    other, worker = rig.worker(model="another model"), rig.worker()
    other.store(rig.tokens(1), rig.blocks(other, 1))
    wait_until(lambda: reader.batches, "the first batch")
    for number in range(12):  # more than a batch holds, and nothing of it concerns the reader
        assert other.store(rig.tokens(3, number), rig.blocks(other, 3))
    assert worker.store(rig.tokens(1, 99), rig.blocks(worker, 1))
    reader.wait_for(hashes_of(rig.tokens(1, 99)))


def test_one_batch_is_under_way_until_its_reader_has_taken_it(rig: Rig) -> None:
    worker, client = rig.worker(), RawClient(rig.server.url)
    client.greet()
    uid, *rest = client.frames("subscribe_kv_events", 9, rig.model, 0, 16)
    first = client.exchange([uid, *rest])
    assert client.value(first)["events"] == []
    for number in range(3):
        assert worker.store(rig.tokens(1, number), rig.blocks(worker, 1))
    told = list[bytes]()
    everything = [h for number in range(3) for h in hashes_of(rig.tokens(1, number))]
    assert client.call("noop") == "OK"  # nothing was sent before that
    while len(told) < 3:
        client.send([uid, b"", b"ack"])
        batch = client.value(client.receive())
        told += [each["block_hashes"][0] for each in batch["events"]]
    assert told == everything
    client.send([uid, b"", b"cancel"])
    assert len(client.receive()) == 2
    client.close()


def test_a_reader_that_was_too_slow_is_told_that_and_all_that_is_there(
    new_server: MakeServer,
) -> None:
    """In the middle of its stream, which goes on."""
    server = new_server("--kv-event-log-size", "4").start()
    rig, client = Rig(server, "slow"), RawClient(server.url)
    worker = rig.worker()
    client.greet()
    uid, *rest = client.frames("subscribe_kv_events", 9, rig.model, 0, 16)
    first = client.value(client.exchange([uid, *rest]))
    assert first["events"] == [] and not first["lost"]

    def store(number: int) -> list[bytes]:
        told = events_told(server)
        assert worker.store(rig.tokens(4, number), rig.blocks(worker, 4))
        wait_until(lambda: events_told(server) == told + 4, "the history has them")
        return hashes_of(rig.tokens(4, number))

    def next_batch() -> dict[str, Any]:
        client.send([uid, b"", b"ack"])
        batch: dict[str, Any] = client.value(client.receive())
        return batch

    there = [each for number in range(6) for each in store(number)]
    assert client.call("noop") == "OK"  # nothing was sent before that
    batch = next_batch()
    assert batch["lost"] and batch["next_cursor"] == 0, "whoever stops here has to begin anew"
    told = hashes_in(batch)
    batch = next_batch()
    assert not batch["lost"] and batch["next_cursor"] > first["next_cursor"]
    assert set(told + hashes_in(batch)) == set(there)
    assert lost(server) == 1

    more = store(6)
    batch = next_batch()
    assert not batch["lost"] and hashes_in(batch) == more
    assert lost(server) == 1
    client.send([uid, b"", b"cancel"])
    assert len(client.receive()) == 2
    client.close()
    rig.close()


def events_told(server: Server) -> int:
    events = server.status()["kv_events"]
    return int(events["next_seq"] - events["incarnation"])


def hashes_in(batch: dict[str, Any]) -> list[bytes]:
    assert {each["kind"] for each in batch["events"]} == {"stored"}
    return [name for each in batch["events"] for name in each["block_hashes"]]


def lost(server: Server) -> float:
    return server.metrics().total("lmcache_mp_kv_events_lost_total")


def test_evicted_chunks_are_told(new_server: MakeServer) -> None:
    server = new_server(l1_size_gb=0.0625).start()
    rig = Rig(server, "small")
    reader = Reader(rig.scheduler(), rig.model)
    worker = rig.worker()
    number = 0
    while all(record.kind == "stored" for record in reader.records):
        assert number < 100_000, "nothing was evicted, or it was not told"
        assert worker.store(rig.tokens(4, number), rig.blocks(worker, 4))
        number += 1
    scheduler = rig.scheduler()

    def agrees() -> bool:
        there = set[bytes]()
        for each in range(number):
            tokens = rig.tokens(4, each)
            there.update(hashes_of(tokens)[: scheduler.lookup(tokens, f"r{each}")])
            scheduler.end(f"r{each}")
        return reader.held() >= there and len(reader.held() - there) < 4

    wait_until(agrees, "what was told to be what is there")
    reader.close()
    rig.close()


def test_a_stock_worker_publishes_what_the_server_holds(rig: Rig) -> None:
    context = zmq.Context()
    adapter = LMCacheMPWorkerAdapter(
        rig.server.url, context, rig.model, 1, 0, 16, enable_kv_events=True
    )
    worker, tokens = rig.worker(), rig.tokens(2)
    adapter.get_kv_events()
    assert worker.store(tokens, rig.blocks(worker, 2))
    told = list[bytes]()

    def all_told() -> bool:
        told.extend(h for event in adapter.get_kv_events() for h in event.block_hashes)
        return told == hashes_of(tokens)

    wait_until(all_told, "the worker to publish the chunks of another")
    adapter.shutdown()
    context.destroy(linger=0)


def test_without_history_nothing_is_told(new_server: MakeServer) -> None:
    server = new_server("--kv-event-log-size", "0").start()
    client = RawClient(server.url)
    client.greet()
    assert client.call("get_experimental") == []
    uid, *rest = client.frames("subscribe_kv_events", 9, "model", 0, 16)
    assert client.value(client.exchange([uid, *rest]))["enabled"] is False
    assert len(client.receive()) == 2
    client.close()
    assert server.status()["kv_events"]["enabled"] is False
