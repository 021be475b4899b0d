"""Which generation a connection speaks: from its first frames, and after a reconnect."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.wire.generations import GENERATIONS, NEWEST, OLDEST, Generation
from sidecar.wire.peers import Peers, Unreadable
from tests.support.raw import make_key

encode = msgspec.msgpack.encode
WORKER, OTHER, MODEL = b"worker", b"other", "m"
# They name no worker.
OF_A_SCHEDULER = ("lookup", "query_prefetch_status", "free_lookup_locks", "end_session")
BY_FIRST = {generation.first: generation for generation in GENERATIONS}


def number(generation: Generation, name: str) -> bytes:
    """The frame that names an operation."""
    frames = generation.table.operations().items()
    return next(frame for frame, operation in frames if operation.name == name)


def key(generation: Generation, worker: int | None) -> dict[str, Any]:
    made = make_key([1, 2], 0, 0, model=MODEL, worker=worker)
    if not generation.counts_readers:
        del made["num_kv_readers"], made["request_configs"]
    return made


def frames(generation: Generation, worker: int = 7) -> dict[str, list[Any]]:
    """What a stock client of this generation sends, by operation: the payloads."""
    group = {"engine_group_id": 0, "layer_indices": [0]}
    driven = {
        "instance_id": worker, "model_name": MODEL, "world_size": 1, "block_size": 16,
        "num_layers": 1, "hidden_dim_size": 8, "dtype_str": "float16", "use_mla": False,
    }  # fmt: skip
    if generation.counts_readers:
        group |= {"recurrent_state": False, "extra_object_group_tag": 0}
        driven |= {"num_physical_slots": None}
    mine, all_ranks = key(generation, 0), key(generation, None)
    groups = [[group]] if generation.first >= "0.4.7" else []
    blocks = [[1]] if generation.first >= "0.4.7" else [1]
    sent = {
        "register_kv_cache": [worker, [], MODEL, 1, "vllm", {}, *groups],
        "unregister_kv_cache": [worker],
        "store": [mine, worker, blocks, b"e"],
        "retrieve": [mine, worker, blocks, b"e", 0],
        "lookup": [all_ranks, 1],
        "query_prefetch_status": ["r"],
        "free_lookup_locks": [all_ranks, 1],
        "end_session": ["r"],
        "ping": [worker] if generation.names_worker_in_ping else [],
        "report_block_allocation": [1, MODEL, []],
        "register_kv_cache_engine_driven_context": [driven],
        "unregister_kv_cache_engine_driven_context": [worker],
        "prepare_store": [mine, worker],
        "commit_store": [mine, worker, b""],
        "prepare_retrieve": [mine, worker],
        "commit_retrieve": [mine, worker],
    }
    served = {op.name for op in generation.table.operations().values() if op.served}
    return {name: payloads for name, payloads in sent.items() if name in served}


def send(
    peers: Peers, client: bytes, uid: int, generation: Generation, name: str, worker: int = 7
) -> Any:
    payloads = [] if name == "get_chunk_size" else frames(generation, worker)[name]
    sent = [encode(payload) for payload in payloads]
    return peers.read(client, encode(uid), number(generation, name), sent)


EVERY_FRAME = [(generation, name) for generation in GENERATIONS for name in frames(generation)]


@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda g: g.releases)
def test_a_client_that_greets_is_understood_from_then_on(generation: Generation) -> None:
    peers = Peers()
    assert send(peers, WORKER, 0, generation, "get_chunk_size").operation.name == "get_chunk_size"
    for uid, name in enumerate(frames(generation), 1):
        reading = send(peers, WORKER, uid, generation, name)
        assert reading.operation.name == name
        # Between 0.5.3 and 0.5.5 a greeting does not tell; then the older one's habits hold.
        assert GENERATIONS.index(reading.generation) <= GENERATIONS.index(generation)
    if generation is not NEWEST:
        assert reading.generation is generation


@pytest.mark.parametrize("generation", GENERATIONS[2:], ids=lambda g: g.releases)
def test_a_registration_with_groups_tells_what_a_greeting_does_not(generation: Generation) -> None:
    """Only since 0.5.5 a group says whether it is recurrent; older ones may not have several."""
    peers = Peers()
    send(peers, WORKER, 0, generation, "get_chunk_size")
    assert send(peers, WORKER, 1, generation, "register_kv_cache").generation is generation


@pytest.mark.parametrize(("generation", "name"), EVERY_FRAME, ids=str)
def test_without_a_greeting_a_frame_is_understood_or_refused(
    generation: Generation, name: str
) -> None:
    try:
        assert send(Peers(), WORKER, 5, generation, name).operation.name == name
    except Unreadable as refusal:
        assert refusal.reason == "ambiguous_generation"


@pytest.mark.parametrize(("generation", "name"), EVERY_FRAME, ids=str)
def test_a_reconnect_of_a_worker_that_is_known_is_understood(
    generation: Generation, name: str
) -> None:
    peers = Peers()
    send(peers, WORKER, 0, generation, "get_chunk_size")
    for each in frames(generation):
        send(peers, WORKER, 1, generation, each)
    peers.registered(WORKER, 7)
    try:
        assert send(peers, OTHER, 9, generation, name).operation.name == name
    except Unreadable as refusal:
        assert name in OF_A_SCHEDULER, refusal


def test_pings_tell_the_generation_after_a_restart() -> None:
    for generation in GENERATIONS:
        reading = send(Peers(), WORKER, 5, generation, "ping")
        assert reading.operation.name == "ping"
        assert reading.generation.names_worker_in_ping == generation.names_worker_in_ping


def test_one_that_could_mean_two_things_is_refused_with_the_negative_of_the_newer() -> None:
    with pytest.raises(Unreadable) as caught:
        Peers().read(WORKER, encode(5), encode(9), [encode("r")])
    assert caught.value.reason == "ambiguous_generation"
    assert "--client-generation" in str(caught.value)
    assert caught.value.reading is not None
    assert caught.value.reading.operation.name == "query_prefetch_status"


@pytest.mark.parametrize("greets", [True, False])
def test_a_release_that_is_not_served_is_named_with_one_that_is(greets: bool) -> None:
    """0.4.4 has the ids of 0.4.5, and no engine type in its registration."""
    peers = Peers()
    if greets:
        send(peers, WORKER, 0, OLDEST, "get_chunk_size")
    with pytest.raises(Unreadable, match=r"lmcache 0\.4\.4 is not served: 0\.4\.5 or newer is"):
        peers.read(WORKER, encode(1), encode(1), [*map(encode, [7, [], MODEL, 1, {}])])


def test_chunks_as_pickles_are_refused_with_the_way_out() -> None:
    peers, generation = Peers(), BY_FIRST["0.4.6"]
    send(peers, WORKER, 0, generation, "get_chunk_size")
    op = number(generation, "register_kv_cache_engine_driven_context")
    with pytest.raises(Unreadable, match=r"use 0\.4\.7 or newer") as caught:
        peers.read(WORKER, encode(1), op, [encode({})])
    assert caught.value.reason == "not_served"


def test_a_fixed_generation_is_not_questioned() -> None:
    peers = Peers()
    peers.connected(WORKER, BY_FIRST["0.4.7"])
    assert peers.read(WORKER, encode(5), encode(9), [encode("r")]).operation.name == "end_session"


def test_what_a_connection_speaks_is_forgotten_with_it() -> None:
    peers = Peers()
    send(peers, WORKER, 0, OLDEST, "get_chunk_size")
    peers.gone(WORKER)
    assert send(peers, WORKER, 0, NEWEST, "get_chunk_size").operation.name == "get_chunk_size"


@given(st.lists(st.tuples(st.sampled_from(EVERY_FRAME), st.integers(0, 2)), max_size=12))
def test_no_frame_is_ever_taken_for_another(sent: list[tuple[tuple[Generation, str], int]]) -> None:
    """Whatever frames of whichever generations come before: each connection is one client's."""
    peers = Peers()
    speaks: dict[bytes, Generation] = {}
    for (generation, name), number_of_client in sent:
        client = b"%d" % number_of_client
        if speaks.setdefault(client, generation) is not generation:
            continue
        try:
            reading = send(peers, client, 5, generation, name, number_of_client)
        except Unreadable:
            continue
        assert reading.operation.name == name
        peers.registered(client, number_of_client)
