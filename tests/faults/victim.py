"""A worker process that is in the middle of transfers all the time, until somebody kills it.

Usage: python -m tests.faults.victim URL MODE INSTANCE MODEL. Prints a line once under way.
"""

from __future__ import annotations

import itertools
import sys

from tests.support.raw import ENGINE, EVENT, RawClient, RawPool, RawWorker, make_key

SEED = 4711
BLOCKS = list(range(1, 65))
CHUNKS = 16


def request_tokens(number: int) -> list[int]:
    """The tokens of the victim's request `number`."""
    return [number, *range(1, CHUNKS * 64)]


def pool() -> RawPool:
    """What the victim's memory holds."""
    return RawPool(blocks=80, seed=SEED)


def handle_mode(client: RawClient, model: str, instance: int) -> None:
    """Stores in flight without end, and lookups whose locks are never given back."""
    worker = RawWorker(client, model, instance, pool())
    worker.register()
    assert client.call("ping", instance) is True
    for number in itertools.count():
        tokens = request_tokens(number)
        key = make_key(tokens, 0, len(tokens), model=model, request=f"r{number}")
        client.send(client.frames("store", key, instance, [BLOCKS], EVENT))
        if number < 100:
            client.send(client.frames("lookup", {**key, "worker_id": None}, 1))
        client.send(client.frames("retrieve", key, instance, [BLOCKS], EVENT, 0))
        if number == 20:
            print("under way", flush=True)
        if number > 20:
            client.receive()


def engine_mode(client: RawClient, model: str, instance: int) -> None:
    """Slots reserved and never committed, objects being read and never released."""
    fields = {"instance_id": instance, "model_name": model} | ENGINE
    client.call("register_kv_cache_engine_driven_context", fields)
    assert client.call("ping", instance) is True
    first = request_tokens(0)
    done = make_key(first, 0, len(first), model=model, request="done")
    client.call("prepare_store", done, instance)
    assert client.call("commit_store", done, instance, b"") is True
    for number in range(1, 20):
        tokens = request_tokens(number)
        key = make_key(tokens, 0, len(tokens), model=model, request=f"r{number}")
        assert client.call("prepare_store", key, instance)["context"]["slots"]
        reading = {**done, "request_id": f"reader-{number}"}
        client.call("lookup", {**reading, "worker_id": None}, 1)
        assert client.call("prepare_retrieve", reading, instance)["success"] is True
    print("under way", flush=True)
    while True:
        assert client.call("ping", instance) is True


def main() -> None:
    url, mode, instance, model = sys.argv[1:]
    run = handle_mode if mode == "lmcache_driven" else engine_mode
    run(RawClient(url), model, int(instance))


if __name__ == "__main__":
    main()
