"""What a worker may have given up on is neither published nor written to its memory."""

from __future__ import annotations

import signal
import time

import numpy as np

from tests.support.raw import RawClient, RawPool, RawWorker, decode, extension, make_key
from tests.support.server import Server, wait_until

TOKENS = list(range(900, 900 + 128))
BLOCKS = list(range(1, 9))
LONGER_THAN_A_STALL = 7.0


def test_a_server_that_stood_still_forgets_what_was_in_flight(own_server: Server) -> None:
    """Its clients have missed a ping meanwhile and use their blocks for something else."""
    server = own_server
    with RawClient(server.url) as client:
        worker = RawWorker(client, "stalled", 41_001)
        worker.register()
        key = make_key(TOKENS, 0, 128, model="stalled")
        assert worker.store({**key, "token_ids": [*TOKENS[:127], 1]}, BLOCKS)[1] is True
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        frames = client.frames("store", key, worker.instance, [BLOCKS], b"e")
        client.send(frames)
        time.sleep(LONGER_THAN_A_STALL)
        worker.pool.data[:] = 0xDEAD
        server.process.send_signal(signal.SIGCONT)
        reply = client.receive()
        assert reply[0] == frames[0] and decode(reply[2]) == [b"", False]
        assert worker.lookup({**key, "worker_id": None}) == 0
        assert [client.call("ping", worker.instance) for _ in range(2)] == [False, True]
        worker.register()
        # What was cached before is still there, and the worker is served again.
        known = {**key, "token_ids": [*TOKENS[:127], 1]}
        assert worker.lookup({**known, "worker_id": None}) == 128 // server.chunk_size
        assert worker.retrieve(known, BLOCKS)[1] is True
        worker.prove([5, *range(127)], server.chunk_size)
        worker.close()


def test_the_latest_registration_counts_however_long_each_takes(own_server: Server) -> None:
    """A large segment takes longer to map than the small one that replaces it."""
    with RawClient(own_server.url) as client:
        slow, quick = RawPool(blocks=120_000, seed=1), RawPool(seed=2)
        worker = RawWorker(client, "twice", 41_002, quick)
        descriptors = [extension(slow.descriptor(i)) for i in range(slow.LAYERS)]
        first = client.frames("register_kv_cache", *worker.registration(descriptors))
        second = client.frames("register_kv_cache", *worker.registration())
        client.send(first)
        client.send(second)
        answered = {client.receive()[0] for _ in range(2)}
        assert answered == {first[0], second[0]}
        key = make_key(TOKENS, 0, 128, model="twice")
        before = quick.data[:, BLOCKS].copy()
        assert worker.store(key, BLOCKS)[1] is True
        quick.data[:] = 0
        assert worker.retrieve(key, BLOCKS)[1] is True
        assert np.array_equal(quick.data[:, BLOCKS], before)
        slow.unlink()
        worker.close()


def test_a_worker_that_left_while_it_was_being_mapped_is_gone(own_server: Server) -> None:
    with RawClient(own_server.url) as client:
        worker = RawWorker(client, "leaver", 41_003, RawPool(blocks=120_000))
        client.send(client.frames("register_kv_cache", *worker.registration()))
        client.call("unregister_kv_cache", worker.instance)
        client.call("noop")
        wait_until(lambda: own_server.status()["queue_depth"] == 0, "the mapping ends")
        assert own_server.status()["cache_context_meta"] == {}
        worker.pool.unlink()
