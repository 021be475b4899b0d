"""Every operation's reply, by number and by name, and the small operations in full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.rig import Rig
from tests.support.client import TIMEOUT
from tests.support.raw import EVENT, RawClient, RawWorker, decode, make_key
from tests.support.server import Server

TOKENS = list(range(7, 7 + 128))


@pytest.fixture
def raw(server: Server) -> Iterator[RawClient]:
    with RawClient(server.url) as client:
        client.greet()
        yield client


def test_chunk_size_and_experimental(rig: Rig) -> None:
    rpc = rig.scheduler().rpc
    assert rpc.get_chunk_size().result(timeout=TIMEOUT) == rig.chunk
    assert isinstance(rpc.get_experimental().result(timeout=TIMEOUT), list)
    assert rpc.noop().result(timeout=TIMEOUT) == "OK"


def test_ping_with_and_without_an_instance(rig: Rig) -> None:
    worker = rig.worker()
    assert worker.ping(worker.instance)
    assert worker.ping(None)


def test_ping_and_clear_of_both_arities(raw: RawClient) -> None:
    assert raw.call("ping", None) is True
    assert raw.call("ping") is True
    assert raw.call("clear", False) is None
    assert raw.call("clear") is None


def test_report_block_allocation(rig: Rig, raw: RawClient) -> None:
    record = {"req_id": "r", "new_block_ids": [1, 2], "new_token_ids": [5] * 32}
    assert raw.call("report_block_allocation", 4711, rig.model, [record]) is None
    assert raw.call("report_block_allocation", 4711, rig.model, []) is None


def test_ids_nobody_knows(rig: Rig, raw: RawClient) -> None:
    assert raw.call("query_prefetch_status", "never looked up") == 0
    assert raw.call("wait_prefetch_status", "never looked up", 0.05) == 0
    assert raw.call("end_session", "never seen") is None
    assert raw.call("unregister_kv_cache", 12345) is None
    assert raw.call("unregister_kv_cache_engine_driven_context", 12345) is None


def engine_registration(instance: int, model: str, slots: int | None) -> dict[str, Any]:
    return {
        "instance_id": instance,
        "model_name": model,
        "world_size": 1,
        "block_size": 16,
        "num_layers": 2,
        "hidden_dim_size": 32,
        "dtype_str": "float16",
        "use_mla": True,
        "num_physical_slots": slots,
    }


@pytest.mark.parametrize("as_name", [False, True], ids=["number", "name"])
def test_every_operation_answers_in_its_own_spelling(
    raw: RawClient, server: Server, as_name: bool
) -> None:
    """`RawClient` checks that uid and operation come back byte for byte."""
    model, instance, engine = f"spelling-{as_name}", 901 + as_name, 911 + as_name
    end = len(TOKENS)
    worker = RawWorker(raw, model, instance)
    key = make_key(TOKENS, 0, end, model=model)
    lookup = {**key, "worker_id": None}
    blocks = [list(range(1, 9))]
    calls: list[tuple[str, list[Any], Any]] = [
        ("get_chunk_size", [], server.chunk_size),
        ("noop", [], "OK"),
        ("register_kv_cache", worker.registration(), None),
        ("ping", [instance], True),
        ("store", [key, instance, blocks, EVENT], True),
        ("lookup", [lookup, 1], None),
        ("query_prefetch_status", ["r"], 2),
        ("query_prefetch_status", ["r"], 0),
        ("retrieve", [key, instance, blocks, EVENT, 0], True),
        ("lookup", [lookup, 1], None),
        ("wait_prefetch_status", ["r", 5.0], 2),
        ("free_lookup_locks", [lookup, 1], None),
        ("end_session", ["r"], None),
        ("report_block_allocation", [instance, model, []], None),
        ("unregister_kv_cache", [instance], None),
    ]
    for name, payloads, expected in calls:
        got = raw.call(name, *payloads, as_name=as_name)
        assert (got[1] if isinstance(got, list) else got) == expected, name
    answer = raw.call(
        "register_kv_cache_engine_driven_context",
        engine_registration(engine, model + "-engine", 64),
        as_name=as_name,
    )
    assert answer["shm_name"] and answer["pool_size"] > 0
    worker.pool.unlink()
    key = {**key, "model_name": model + "-engine"}
    context = raw.call("prepare_store", key, engine, as_name=as_name)["context"]
    assert context["chunk_indices"] == [0, 1]
    assert [slot["shape"] for slot in context["slots"]] == [[2, 64, 32]] * 2
    assert raw.call("commit_store", key, engine, b"", as_name=as_name) is True
    assert raw.call("commit_store", key, engine, b"", as_name=as_name) is False
    found = raw.call("prepare_retrieve", key, engine, as_name=as_name)
    assert found["success"] is True and len(found["context"]["slots"]) == 2
    assert "chunk_indices" not in found["context"]
    assert raw.call("commit_retrieve", key, engine, as_name=as_name) is True
    name = "unregister_kv_cache_engine_driven_context"
    assert raw.call(name, engine, as_name=as_name) is None


def test_a_registration_without_physical_slots(raw: RawClient) -> None:
    """Clients before 0.5.5 do not send the number: a chunk then has chunk_size slots."""
    fields = engine_registration(931, "old-engine", None)
    del fields["num_physical_slots"]
    raw.call("register_kv_cache_engine_driven_context", fields)
    key = make_key(TOKENS, 0, len(TOKENS), model="old-engine")
    context = raw.call("prepare_store", key, 931)["context"]
    assert [slot["shape"] for slot in context["slots"]] == [[2, 64, 32]] * 2
    assert all(slot["length"] == 2 * 64 * 32 * 2 for slot in context["slots"])
    assert all(slot["offset"] % 2 == 0 for slot in context["slots"])
    raw.call("unregister_kv_cache_engine_driven_context", 931)


def test_split_planes_of_an_engine_registration(raw: RawClient) -> None:
    fields = engine_registration(932, "planes", 64) | {"use_mla": False}
    raw.call("register_kv_cache_engine_driven_context", fields)
    key = make_key(TOKENS, 0, len(TOKENS), model="planes")
    slots = raw.call("prepare_store", key, 932)["context"]["slots"]
    assert [slot["shape"] for slot in slots] == [[2, 2, 64, 32]] * 2
    assert {slot["dtype"] for slot in slots} == {"float16"}
    raw.call("unregister_kv_cache_engine_driven_context", 932)


def test_nothing_means_two_frames(raw: RawClient) -> None:
    """A result of None has no value frame, never a nil one."""
    reply = raw.exchange(raw.frames("end_session", "r"))
    assert len(reply) == 2


def test_unknown_key_fields_and_a_flat_block_list(raw: RawClient) -> None:
    """Fields of later clients are ignored; a flat block list is one group's."""
    worker = RawWorker(raw, "flat", 941)
    worker.register()
    key = make_key(TOKENS, 0, len(TOKENS), model="flat", from_the_future={"a": 1})
    assert raw.call("store", key, 941, list(range(1, 9)), EVENT)[1] is True
    assert worker.lookup({**key, "worker_id": None}) == 2
    assert raw.call("retrieve", key, 941, list(range(9, 17)), EVENT, 0)[1] is True
    worker.close()


def test_coercions_of_the_stock_decoder(raw: RawClient) -> None:
    """True stands for 1, and 1 for True."""
    assert raw.call("clear", 0) is None
    assert raw.call("lookup", make_key(TOKENS, 0, 64, model="m", worker=None), True) is None


def test_every_uid_gets_its_own_answer(raw: RawClient) -> None:
    """Many requests at once: the answers may come in any order, but each comes once."""
    pings = [raw.frames("ping", None) for _ in range(250)]
    noops = [raw.frames("noop") for _ in range(250)]
    expected = {f[0]: True for f in pings} | {f[0]: "OK" for f in noops}
    for pair in zip(pings, noops, strict=True):
        for frames in pair:
            raw.send(frames)
    replies = [raw.receive() for _ in expected]
    assert {reply[0]: decode(reply[2]) for reply in replies} == expected
