"""A hundred thousand messages bred from valid ones: the server answers, and still serves."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import msgspec

from sidecar.wire.generations import NEWEST
from tests.support.raw import (
    EVENT,
    OPERATIONS,
    RawClient,
    RawPool,
    RawWorker,
    encode,
    make_key,
)
from tests.support.server import Server

MESSAGES = 100_000
BATCH = 400
TOKENS = list(range(128))
INTERESTING = [
    *(0, 1, -1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
    *(None, True, False, 0.5, float("nan"), float("inf"), "", "r", "a@b", b"", b"x" * 40),
    *([], [0], [[-1]], [[1] * 8], {}, {"a": None}, msgspec.msgpack.Ext(1, b"\x80\x04.")),
]


def seeds(pool: RawPool, instance: int) -> list[tuple[Any, list[Any]]]:
    """One valid request for every operation."""
    key = make_key(TOKENS, 0, 128, model="fuzz")
    lookup = {**key, "worker_id": None}
    engine = {
        "instance_id": instance + 1,
        "model_name": "fuzz",
        "world_size": 1,
        "block_size": 16,
        "num_layers": 2,
        "hidden_dim_size": 32,
        "dtype_str": "float16",
        "use_mla": True,
        "num_physical_slots": 64,
    }
    record = {"req_id": "r", "new_block_ids": [1], "new_token_ids": [1] * 16}
    blocks = [list(range(1, 9))]
    registration = [instance, pool.caches(), "fuzz", 1, "vllm", {"kv_layout": "HND"}, []]
    group = {"engine_group_id": 0, "layer_indices": [0, 1], "recurrent_state": False}
    return [
        ("register_kv_cache", registration),
        ("register_kv_cache", [*registration[:6], [group]]),
        ("unregister_kv_cache", [instance]),
        ("store", [key, instance, blocks, EVENT]),
        ("retrieve", [key, instance, blocks, EVENT, 16]),
        ("lookup", [lookup, 1]),
        ("query_prefetch_status", ["r"]),
        ("wait_prefetch_status", ["r", 0.01]),
        ("free_lookup_locks", [lookup, 1]),
        ("end_session", ["r"]),
        ("register_kv_cache_engine_driven_context", [engine]),
        ("unregister_kv_cache_engine_driven_context", [instance + 1]),
        ("prepare_store", [key, instance + 1]),
        ("commit_store", [key, instance + 1, b""]),
        ("prepare_retrieve", [key, instance + 1]),
        ("commit_retrieve", [key, instance + 1]),
        ("clear", [True]),
        ("get_chunk_size", []),
        ("ping", [instance]),
        ("report_block_allocation", [instance, "fuzz", [record]]),
        ("noop", []),
        ("get_experimental", []),
        ("subscribe_kv_events", [instance, "fuzz", 0, 16]),
        ("server_module_call", [{"method": "m", "payload": b""}]),
        *native_seeds(),
    ]


def native_seeds() -> list[tuple[Any, list[Any]]]:
    """The same for the native door; an engine that the fuzzer attaches is never ready."""
    engine = {"version": 1, "engine": "e", "incarnation": bytes(16), "ranks": 1}
    sizes, session = {"object_bytes": 4096}, {"session": 1}
    kind = {"model": "m", "groups": 2, "chunk_tokens": 16, "identity": bytes(32)}
    group = {"group": 0, "hashes": [bytes(32)] * 3, "windowed": True, "load": True}
    return [
        ("native_attach", [engine | sizes | kind]),
        ("native_join", [engine | sizes | {"rank": 0, "layout": bytes(32)}]),
        ("native_mapped", [{"member": 1, "server": bytes(16)}]),
        ("native_ping", [{"session": 1, "member": 1}]),
        ("native_reserve", [session | {"count": 4}]),
        ("native_publish", [session | {"request": "r", "items": [[0, bytes(32), 1]]}]),
        ("native_return", [session | {"slots": [1, 2]}]),
        ("native_lookup", [session | {"request": "r", "budget_ms": 5, "groups": [group, group]}]),
        ("native_finish", [session | {"requests": [["r", True]]}]),
        ("native_resume", [session | {"slots": [1, 2], "requests": ["r"]}]),
        ("native_describe", [session | {"items": [[0, bytes(32), b"text"]]}]),
        ("native_holdings", [session | {"begin": True}]),
        ("native_detach", [session]),
    ]


class Fuzzer:
    """Breeds messages; the same seed breeds the same ones."""

    def __init__(self, pool: RawPool, instance: int, seed: int) -> None:
        self.random = random.Random(seed)
        self.seeds = seeds(pool, instance)

    def message(self) -> list[bytes]:
        """Frames after the identity: a valid request, or one spoilt in one of many ways."""
        pick = self.random
        name, payloads = pick.choice(self.seeds)
        number = OPERATIONS.get(name, name) if pick.random() < 0.8 else name
        if pick.random() < 0.6:
            spoilt = self.spoil(payloads)
            payloads = spoilt if isinstance(spoilt, list) else [spoilt]
        frames = [encode(pick.getrandbits(32)), encode(number), *map(encode, payloads)]
        if pick.random() < 0.5:
            self.damage(frames)
        return frames

    def spoil(self, value: Any) -> Any:
        """`value` with one leaf, item or field replaced, dropped or doubled."""
        pick = self.random
        if isinstance(value, list) and value and pick.random() < 0.9:
            place = pick.randrange(len(value))
            made = list(value)
            change = pick.random()
            if change < 0.8:
                made[place] = self.spoil(made[place])
            elif change < 0.9:
                del made[place]
            else:
                made.insert(place, made[place])
            return made
        if isinstance(value, dict) and value and pick.random() < 0.9:
            field = pick.choice(list(value))
            if pick.random() < 0.1:
                return {name: item for name, item in value.items() if name != field}
            return value | {field: self.spoil(value[field])}
        return pick.choice(INTERESTING)

    def damage(self, frames: list[bytes]) -> None:
        """Spoil the bytes or the number of frames."""
        pick = self.random
        place = pick.randrange(len(frames))
        frame = frames[place]
        change = pick.randrange(7)
        if change == 0:
            frames[place] = frame[: pick.randrange(len(frame) + 1)]
        elif change == 1:
            frames[place] = frame + pick.randbytes(pick.randrange(1, 9))
        elif change == 2:
            del frames[place]
        elif change == 3:
            frames.insert(place, pick.randbytes(pick.randrange(0, 40)))
        elif change == 4:
            frames[place] = pick.randbytes(pick.randrange(0, 64))
        elif frame:
            spot = pick.randrange(len(frame))
            flipped = frame[spot] ^ (1 << pick.randrange(8))
            frames[place] = frame[:spot] + bytes([flipped]) + frame[spot + 1 :]


def drain(client: RawClient, until: bytes) -> int:
    """Read replies up to the one of uid `until`; how many there were."""
    count = 0
    while True:
        reply = client.receive(60)
        count += 1
        if reply[0] == until:
            return count


def test_every_operation_is_among_the_seeds() -> None:
    pool = RawPool()
    pool.unlink()
    names = {name for name, _ in seeds(pool, 1)}
    assert names >= {op.name for op in NEWEST.table.operations().values() if op.served}


def test_a_hundred_thousand_messages(server: Server, still_serves: Callable[[], None]) -> None:
    """In batches, each closed by a ping, so that never more than a batch is in flight."""
    with RawClient(server.url) as client:
        worker = RawWorker(client, "fuzz", 333)
        worker.register()
        fuzzer = Fuzzer(worker.pool, 333, seed=20261122)
        sent = answered = 0
        while sent < MESSAGES:
            for _ in range(BATCH):
                frames = fuzzer.message()
                if frames:
                    client.send(frames)
            sent += BATCH
            ping = [f"batch-{sent}".encode(), encode(OPERATIONS["ping"]), encode(None)]
            client.send(ping)
            answered += drain(client, ping[0])
            assert server.running, server.stderr()
        assert answered > MESSAGES // 2
        worker.close()
        client.call("unregister_kv_cache_engine_driven_context", 334)
    still_serves()
    assert server.healthy()


def test_random_bytes(server: Server, still_serves: Callable[[], None]) -> None:
    """No structure at all. What such a connection speaks is undecided; it still gets answers."""
    pick = random.Random(7)
    with RawClient(server.url) as client:
        for _ in range(5000):
            frames = [pick.randbytes(pick.randrange(0, 50)) for _ in range(pick.randrange(1, 9))]
            client.send(frames)
        client.exchange(client.frames("get_chunk_size"))
        client.exchange(client.frames("ping", None))
    still_serves()
