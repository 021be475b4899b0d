"""The native door over the wire: engines that store, find, share, restart and die."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sidecar.replay.trace import read
from tests.support.l2 import clear_l1, fs_flags, wait_written
from tests.support.native import BELOW, MISS, OBJECT_BYTES, Engine, Member, block_hash, engines
from tests.support.raw import RawClient
from tests.support.server import Server, wait_until

MakeServer = Callable[..., Server]
NUMBERS, CHUNK_TOKENS = tuple(range(8)), 16


def held(server: Server) -> int:
    """Objects that somebody holds, slots that somebody writes to."""
    l1 = server.status()["storage_manager"]["l1_manager"]
    return int(l1["read_locked_count"] + l1["write_locked_count"])


def check(server: Server) -> None:
    status, text = server.request("/cache/check", {})
    assert status == 200, text


def test_what_an_engine_stores_all_engines_of_its_kind_find(server: Server) -> None:
    with engines(server.url, 2, ranks=2) as (first, second):
        assert first.store("a", *NUMBERS) == len(NUMBERS)
        for engine in (first, second):
            assert engine.hits("b", *NUMBERS, 99) == len(NUMBERS)
        assert second.find("c", 99, *NUMBERS) == [MISS] * 9, "a prefix ends at its first gap"
        assert second.find("d", 99, *NUMBERS, windowed=True)[0] == MISS
        assert second.hits("d", 99, *NUMBERS, windowed=True) == len(NUMBERS)
        check(server)


def test_lookups_are_recorded_in_chunks_of_the_servers_size(
    new_server: MakeServer, tmp_path: Path
) -> None:
    path = tmp_path / "lookups"
    server = new_server("--record-lookups", str(path), chunk_size=2 * CHUNK_TOKENS).start()
    with engines(server.url) as (engine,):
        for name, last in (("a", 4), ("b", 5)):
            engine.find(name, 0, 1, 2, 3, last)
            engine.find(name, 0, 1, 2, 3, last)  # asked for again: one request
    assert server.terminate() == 0
    first, second = read(path)
    assert first.tokens_per_id == server.chunk_size
    assert (len(first.hash_ids), first.input_length) == (2, 5 * CHUNK_TOKENS)
    assert first.hash_ids == second.hash_ids


@pytest.mark.parametrize(
    "other",
    [
        {"identity": bytes(31) + b"x"},
        {"model": "another"},
        {"ranks": 2},
        {"object_bytes": 2 * OBJECT_BYTES},
    ],
)
def test_what_means_something_else_is_never_found(server: Server, other: dict[str, Any]) -> None:
    same = {"identity": secrets.token_bytes(32)}
    with engines(server.url, **same) as (first,), engines(server.url, **same | other) as (second,):
        first.store("a", *NUMBERS)
        assert first.hits("b", *NUMBERS) == len(NUMBERS)
        assert second.hits("b", *NUMBERS) == 0


def test_the_same_engine_with_another_layout_of_tensors(server: Server) -> None:
    with engines(server.url) as (first,):
        first.store("a", *NUMBERS)
        second = Engine(server.url, identity=first.ask["identity"])
        second.members[0].ask["layout"] = b"x" * 32
        assert second.start().hits("b", *NUMBERS) == 0
        second.end_processes()


def test_groups_are_apart(server: Server) -> None:
    with engines(server.url, groups=2) as (engine,):
        engine.store("a", *NUMBERS, group=1)
        assert engine.hits("b", *NUMBERS) == 0
        assert engine.hits("b", *NUMBERS, group=1) == len(NUMBERS)


def test_nothing_is_had_before_all_ranks_have_mapped(server: Server) -> None:
    """For then a copy that the scheduler plans could fail."""
    engine = Engine(server.url, ranks=2)
    engine.members[0].start()
    assert not engine.attach()["ready"]
    assert engine.reserve(1) == [] and engine.find("a", 1) == [MISS]
    late = engine.members[1]
    late.join()
    assert not late.say_mapped(), "the kernel knows of no opening"
    late.map()
    assert late.say_mapped()
    assert engine.call("ping")["ready"]
    assert engine.store("a", 1) == 1
    engine.end_processes()


def test_what_is_found_stays_until_it_is_finished(new_server: MakeServer) -> None:
    """Though others need the room; and a slot that is reserved is nobody else's."""
    server = new_server(l1_size_gb=16 * OBJECT_BYTES / 2**30).start()
    with engines(server.url, 2) as (first, second):
        first.store("a", 1, 2, 3)
        slots = second.find("b", 1, 2, 3)
        for number in range(100, 140):
            first.store("c", number)
        assert second.find("b", 1, 2, 3) == slots
        second.finish("b")
        for number in range(200, 240):
            first.store("c", number)
        assert second.hits("d", 1, 2, 3) == 0
        check(server)


def test_engines_with_chunks_of_different_sizes_share_one_l1(new_server: MakeServer) -> None:
    """Each evicts what others have, of whatever size, and finds its own bytes or nothing."""
    server = new_server(l1_size_gb=48 * OBJECT_BYTES / 2**30).start()
    with ExitStack() as stack:
        sizes = {16: OBJECT_BYTES, 64: 4 * OBJECT_BYTES, 256: 4096, 48: 5 * OBJECT_BYTES - 4096}
        made = [
            *(engines(server.url, chunk_tokens=n, object_bytes=size) for n, size in sizes.items()),
            engines(server.url, ranks=2, chunk_tokens=32, object_bytes=2 * OBJECT_BYTES),
        ]
        all_engines = [stack.enter_context(each)[0] for each in made]
        last = dict.fromkeys(all_engines, 0)
        for turn in range(60):
            engine = all_engines[turn % 5]
            numbers = range(turn % 7, turn % 7 + 4)
            for number in numbers:
                if engine.store(f"s{turn}", number):
                    last[engine] = number
            assert engine.hits("own", last[engine]) == 1, "the latest of all is there"
            for each in all_engines:
                each.hits(f"f{turn}", *numbers, windowed=True)
        assert server.metrics().total("lmcache_mp_l1_evicted_chunks_total") > 0
        wait_until(lambda: held(server) == 0, "nothing is held")
        check(server)


def test_metrics_tell_what_engines_hold(new_server: MakeServer) -> None:
    server = new_server().start()
    with engines(server.url) as [engine]:
        engine.store("r", 1, 2)
        engine.find("r", 1, 2)
        engine.reserve(3)
        (told,) = server.status()["engines"]
        metrics = server.metrics()
        assert metrics.total("lmcache_mp_native_engines") == 1
        for name in ("reserved_bytes", "pinned_bytes"):
            assert metrics.total(f"lmcache_mp_native_{name}") == told[name] > 0


def test_one_engine_cannot_take_all(new_server: MakeServer) -> None:
    server = new_server(l1_size_gb=64 * OBJECT_BYTES / 2**30).start()
    with engines(server.url, 2) as (first, second):
        mine = first.reserve(1000)
        assert len(mine) in range(28, 33)
        assert len(second.reserve(1000)) in range(8, 17)
        assert first.call("return", slots=mine)
        assert len(first.reserve(1000)) in range(20, 29)
        check(server)


def test_what_was_reserved_is_published_once(server: Server) -> None:
    with engines(server.url, 2) as (first, second):
        (slot, other) = first.reserve(2)
        first.write(slot, 1)
        first.write(other, 1)
        assert second.publish("a", [1], [slot]) == 0, "it is not its own"
        assert first.publish("a", [1], [slot]) == 1
        assert first.publish("a", [2], [slot]) == 0
        assert first.publish("a", [1], [other]) == 1, "it is there already"
        assert first.hits("b", 2) == 0 and first.hits("b", 1) == 1
        wait_until(lambda: held(server) == 0, "nothing is held")
        check(server)


def test_a_scheduler_that_reconnects_goes_on(server: Server) -> None:
    with engines(server.url) as (engine,):
        engine.store("a", *NUMBERS)
        found = engine.find("b", *NUMBERS)
        (slot,) = engine.reserve(1)
        engine.write(slot, 50)
        engine.client.close()
        engine.client, before = RawClient(server.url), engine.session
        assert not engine.call("ping")["known"]
        assert engine.publish("a", [50], [slot]) == 0, "whoever knows a number is not the engine"
        assert engine.attach()["session"] == before
        assert engine.publish("a", [50], [slot]) == 1
        assert engine.find("b", *NUMBERS) == found
        engine.finish("b")
        wait_until(lambda: held(server) == 0, "nothing is held")


def test_a_worker_that_reconnects_keeps_its_mapping(server: Server) -> None:
    with engines(server.url) as (engine,):
        (member,) = engine.members
        name = member.joined["shm_name"]
        member.client.close()
        member.client = RawClient(server.url)
        assert member.join()["shm_name"] == name and member.say_mapped()
        assert engine.store("a", *NUMBERS) == len(NUMBERS)


def test_a_slot_waits_for_the_last_process_that_may_write_to_it(server: Server) -> None:
    """Though the scheduler is gone, and all connections: a worker may be stopped in its copy."""
    with engines(server.url, 2, ranks=2) as (first, second):
        slots = first.reserve(4)
        first.write(slots[0], 7)
        assert first.call("detach")
        first.client.close()
        for member in first.members:
            member.client.close()
        wait_until(lambda: second.call("ping")["known"], "it goes on")
        assert reserved(server, first) > 0
        assert second.hits("a", 7) == 0
        taken = [slot for n in range(50) for slot in second.reserve(1) if second.store("x", n)]
        assert not set(slots) & set(taken)
        first.members[0].end_process()
        assert reserved(server, first) > 0
        first.members[1].end_process()
        wait_until(lambda: engine_of(server, first) is None, "the engine is gone")
        assert second.call("return", slots=taken)
        wait_until(lambda: held(server) == 0, "nothing is held")
        check(server)


def engine_of(server: Server, engine: Engine) -> dict[str, Any] | None:
    told = server.status()["engines"]
    return next((each for each in told if each["session"] == engine.session), None)


def reserved(server: Server, engine: Engine) -> int:
    """Bytes that the engine may write to."""
    told = engine_of(server, engine)
    return int(told["reserved_bytes"]) if told else 0


def test_nobody_else_is_this_engine(server: Server) -> None:
    with engines(server.url) as (engine,):
        ask = {**engine.ask, "incarnation": b"another process."}
        with RawClient(server.url) as client:
            answer = client.call("native_attach", ask)
            assert answer["session"] == 0 and "another process" in answer["why"]
        stranger = Member(server.url, engine.ask["engine"], 0, 1)
        assert stranger.join()["member"] == 0
        stranger.end_process()
        assert engine.store("a", 1) == 1


ASK = {
    "version": 1, "engine": "an engine", "incarnation": bytes(16), "model": "a model", "ranks": 1,
    "groups": 1, "chunk_tokens": 16, "object_bytes": 4096, "identity": bytes(32),
}  # fmt: skip


@pytest.mark.parametrize("field", ["engine", "incarnation", "identity", "ranks", "object_bytes"])
def test_nonsense_is_refused(server: Server, field: str) -> None:
    with RawClient(server.url) as client:
        for value in ("", b"", -1, -(2**40), None, [], {}, 1.5):
            ask = {**ASK, field: value}
            assert client.call("native_attach", ask)["session"] == 0


def test_l2_brings_what_the_l1_has_not(new_server: MakeServer, tmp_path: Path) -> None:
    server = new_server(*fs_flags(tmp_path)).start()
    with engines(server.url) as (engine,):
        engine.store("a", *NUMBERS)
        wait_written(server)
        clear_l1(server)
        assert engine.find("b", *NUMBERS, windowed=True) == [BELOW] * len(NUMBERS)
        assert engine.hits("b", 2, 3, windowed=True, load=True) == 2
        before = server.metrics().total("lmcache_mp_lookup_hit_l2_keys_total")
        assert engine.hits("c", *NUMBERS, 99) == len(NUMBERS)
        counted = server.metrics().total("lmcache_mp_lookup_hit_l2_keys_total") - before
        assert counted == len(NUMBERS) - 2, "two were loaded before"
        clear_l1(server)
        found = engine.find("d", *NUMBERS, budget_ms=0)
        assert found == sorted(found, key=lambda slot: slot == MISS), "a prefix"
        engine.finish("d")
        wait_until(lambda: held(server) == 0, "nothing is held")
        server.assert_no_leases()
        check(server)


def test_a_clear_ends_what_engines_stored(server: Server) -> None:
    with engines(server.url) as (engine,):
        engine.store("a", *NUMBERS)
        slots = engine.find("b", *NUMBERS)
        engine.client.call("clear", True, as_name=True)
        assert engine.hits("c", *NUMBERS) == 0
        (slot,) = engine.reserve(1)
        assert slot not in slots, "somebody may still read there"
        engine.finish("b")
        check(server)


def test_what_an_engine_used_outlives_what_it_did_not(new_server: MakeServer) -> None:
    """And heads outlive tails."""
    server = new_server(
        "--eviction-trigger-watermark", "1.0", l1_size_gb=12 * OBJECT_BYTES / 2**30
    ).start()
    with engines(server.url) as (engine,):
        engine.store("a", 1, 2, 3, 4)
        engine.store("b", 11, 12, 13, 14)
        assert engine.hits("c", 1, 2, 3, 4) == 4
        for number in range(50, 58):
            engine.store(f"d{number}", number)
            left = engine.find("look", 1, 2, 3, 4), engine.find("look", 11, 12, 13, 14)
            engine.finish("look", used=False)
            first, second = (sum(slot >= 0 for slot in slots) for slots in left)
            assert first == 4 or second == 0
        check(server)


def test_heads_of_a_prompt_outlive_its_tail_though_they_came_first(
    new_server: MakeServer,
) -> None:
    """A long prompt is stored step by step; its lookup has told the order of all of it."""
    server = new_server(
        "--eviction-trigger-watermark", "1.0", l1_size_gb=12 * OBJECT_BYTES / 2**30
    ).start()
    with engines(server.url) as (engine,):
        assert engine.hits("a", *NUMBERS) == 0
        for first in (0, 2, 4, 6):
            engine.store("a", first, first + 1)
        for number in range(50, 59):
            engine.store("b", number)
            slots = engine.find("look", *NUMBERS, windowed=True)
            engine.finish("look", used=False)
            left = [slot >= 0 for slot in slots]
            assert left == sorted(left, reverse=True), "the tail goes first"
        assert not all(left)


def test_block_hashes_of_other_lengths(server: Server) -> None:
    with engines(server.url) as (engine,):
        (slot,) = engine.reserve(1)
        short = block_hash(1)[:16]
        items = [(0, short, slot)]
        assert engine.call("publish", request="a", items=items) == 1
        group = {"group": 0, "hashes": [short], "windowed": False, "load": False}
        assert engine.call("lookup", request="b", budget_ms=0, groups=[group]) == [[slot]]


def test_one_connection_does_not_keep_others_out(server: Server) -> None:
    with RawClient(server.url) as client:
        answers = [
            client.call("native_attach", {**ASK, "engine": f"engine {n}"}) for n in range(20)
        ]
        assert [bool(answer["session"]) for answer in answers] == [True] * 16 + [False] * 4
        with engines(server.url) as (engine,):
            assert engine.store("a", 1) == 1
    wait_until(lambda: not server.status()["engines"], "those of a connection go with it")
