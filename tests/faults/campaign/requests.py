"""Neighbours that ask for what the protocol allows, and for far too much of it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence

import msgspec
import zmq

from tests.faults.campaign.target import CHUNK, Neighbour, Target
from tests.support.raw import EVENT, NoReply, RawClient, RawWorker, encode, make_key

MILLION = 2**20
MIB = 1 << 20


@contextlib.contextmanager
def registered(target: Target) -> Iterator[RawWorker]:
    """A handle-mode worker with a model of its own."""
    with RawClient(target.url) as client:
        client.greet()
        number = target.random.randrange(10**6)
        worker = RawWorker(client, f"neighbour-{number}", 2_000_000 + number)
        worker.register()
        try:
            yield worker
        finally:
            worker.pool.unlink()


def flood(client: RawClient, requests: Sequence[list[bytes]], target: Target) -> None:
    """Send all of them in one go, then read as many answers, while there is time."""
    for frames in requests:
        while target.goes_on():
            with contextlib.suppress(zmq.Again):
                client.socket.send_multipart(frames, zmq.NOBLOCK)
                break
            time.sleep(0.001)
    for _ in requests:
        while target.goes_on():
            with contextlib.suppress(NoReply):
                client.receive(0.2)
                break


def packed(values: Sequence[int]) -> msgspec.Raw:
    return msgspec.Raw(encode(list(values)))


def long_lookups(target: Target) -> None:
    """64 lookups of a million tokens in one go."""
    with registered(target) as worker:
        tokens = packed([target.random.randrange(128)] * MILLION)
        key = make_key([], 0, MILLION, model=worker.model, worker=None) | {"token_ids": tokens}
        while target.goes_on():
            keys = [{**key, "request_id": f"r{n}"} for n in range(64)]
            flood(worker.client, [worker.client.frames("lookup", k, 1) for k in keys], target)


def heavy_messages_queued(target: Target) -> None:
    """Twenty messages of 60 MiB on their way at once: lookups of more tokens than are taken."""
    with registered(target) as worker:
        client, count = worker.client, 12 * MIB
        tokens = msgspec.Raw(b"\xdd" + count.to_bytes(4, "big") + b"\xce\x00\x01\x00\x00" * count)
        key = make_key([], 0, CHUNK, model=worker.model, worker=None) | {"token_ids": tokens}
        lookup = client.frames("lookup", key, 1)
        while target.goes_on():
            flood(client, [lookup] * 20, target)


def open_lookups(target: Target) -> None:
    """Lookups that find a million tokens, or may find them, and that nobody asks about."""
    with registered(target) as worker:
        client, number = worker.client, 0
        while target.goes_on():
            number += 1
            tokens = packed([number % 100] * (MILLION - CHUNK) + [128 + number] * CHUNK)
            key = make_key([], 0, MILLION, model=worker.model, worker=None, request=f"o{number}")
            flood(client, [client.frames("lookup", key | {"token_ids": tokens}, 1)], target)


def block_ids_by_the_million(target: Target) -> None:
    """Stores of 60 MiB: far more blocks than tokens, in one list and in many."""
    with registered(target) as worker:
        key = make_key(range(CHUNK), 0, CHUNK, model=worker.model)
        count = (60 * MIB).to_bytes(4, "big")
        one_list = msgspec.Raw(b"\x91\xdd" + count + b"\x01" * (60 * MIB))
        many_lists = msgspec.Raw(b"\xdd" + count + b"\x90" * (60 * MIB))
        stores = [
            worker.client.frames("store", key, worker.instance, blocks, EVENT)
            for blocks in (one_list, many_lists)
        ]
        while target.goes_on():
            flood(worker.client, stores, target)


def transfers_queued(target: Target) -> None:
    """A thousand loads of 2,048 chunks each in one go."""
    chunks = 2048
    with registered(target) as worker:
        client, blocks = worker.client, [1, 2, 3, 4] * chunks
        tokens = packed([7] * (chunks * CHUNK))
        key = make_key([], 0, chunks * CHUNK, model=worker.model) | {"token_ids": tokens}
        client.call("store", key, worker.instance, [blocks], EVENT)
        load = client.frames("retrieve", key, worker.instance, [blocks], EVENT, 0)
        while target.goes_on():
            flood(client, [load] * 1000, target)


def rubbish_stored(target: Target) -> None:
    """Prompts that nobody asks for, as many as are taken."""
    with registered(target) as worker:
        client, number = worker.client, 0
        blocks = list(range(1, 41))
        while target.goes_on():
            requests = []
            for _ in range(50):
                number += 1
                tokens = [number] * (10 * CHUNK)
                key = make_key(tokens, 0, len(tokens), model=worker.model, request=f"s{number}")
                requests.append(client.frames("store", key, worker.instance, [blocks], EVENT))
            flood(client, requests, target)


def _loading(target: Target, worker: RawWorker) -> Iterator[str]:
    """Requests whose lookup is under way: L2 has to be asked, and takes its time."""
    client = worker.client
    for number in range(10):
        tokens = [target.random.randrange(2**31) for _ in range(CHUNK)]
        key = make_key(tokens, 0, CHUNK, model=worker.model, worker=None, request=f"l{number}")
        client.call("lookup", key, 1)
        yield key["request_id"]
        client.call("end_session", key["request_id"])


def waits_for_nan(target: Target) -> None:
    """Numbers that are none, where seconds are meant, while a lookup is loading."""
    numbers = [math.nan, math.inf, -math.inf, -1.0, 1e308, 5e-324]
    with registered(target) as worker:
        while target.goes_on():
            for request in _loading(target, worker):
                waits = [worker.client.frames("wait_prefetch_status", request, x) for x in numbers]
                flood(worker.client, waits, target)


def waits_by_the_thousand(target: Target) -> None:
    """For one lookup, with timeouts long and short."""
    with registered(target) as worker:
        client = worker.client
        while target.goes_on():
            for request in _loading(target, worker):
                seconds = [n % 3 * 30.0 for n in range(20_000)]
                waits = [client.frames("wait_prefetch_status", request, s) for s in seconds]
                flood(client, waits, target)


ROWS: dict[str, Neighbour] = {
    "lookups of a million tokens": long_lookups,
    "heavy messages queued": heavy_messages_queued,
    "lookups that stay open": open_lookups,
    "block ids by the million": block_ids_by_the_million,
    "a thousand loads queued": transfers_queued,
    "rubbish stored": rubbish_stored,
    "waits of NaN seconds": waits_for_nan,
    "waits by the thousand": waits_by_the_thousand,
}
