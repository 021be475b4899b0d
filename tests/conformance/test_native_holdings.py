"""The native door tells each engine where its objects are, for the KV events that it publishes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.l2 import clear_l1, fs_flags, wait_written
from tests.support.native import Engine, block_hash, engines
from tests.support.server import Server, wait_until

NUMBERS = tuple(range(8))
IN_L1, IN_L2 = 1, 2
EVENTS = {"events": True}


class Account:
    """What an engine knows, from what it is told."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.objects: dict[tuple[int, bytes], tuple[int, bytes]] = {}
        self.begun = 0

    def read(self, begin: bool = False) -> dict[int, int]:
        """Media by number, of group 0, after all that there is to tell."""
        more = True
        while more:
            said = self.engine.call("holdings", begin=begin)
            if said["begun"]:
                self.begun += 1
                self.objects.clear()
            for group, name, media, description in said["items"]:
                self.objects[group, name] = media, description
            more, begin = said["more"], False
        assert said["whole"]
        return {n: self.objects[0, block_hash(n)][0] for n in NUMBERS if self.media(n)}

    def media(self, number: int, group: int = 0) -> int:
        return self.objects.get((group, block_hash(number)), (0, b""))[0]

    def description(self, number: int) -> bytes:
        return self.objects[0, block_hash(number)][1]


def describe(engine: Engine, *numbers: int, text: bytes = b"it is %d") -> int:
    items = [(0, block_hash(number), text % number) for number in numbers]
    news: int = engine.call("describe", items=items)
    return news


def test_all_engines_are_told_what_one_stores(server: Server) -> None:
    with (
        engines(server.url, 2, groups=2, **EVENTS) as (first, second),
        engines(server.url, **EVENTS) as (other,),
    ):
        account = Account(second)
        assert account.read() == {} and account.begun == 1
        assert describe(first, *NUMBERS) == len(NUMBERS) and describe(first, *NUMBERS) == 0
        assert account.read() == {}, "described, and not there"
        first.store("a", *NUMBERS)
        first.store("b", 1, group=1)

        assert account.read() == dict.fromkeys(NUMBERS, IN_L1) and account.begun == 1
        assert account.media(1, group=1) == IN_L1 and account.media(2, group=1) == 0
        assert [account.description(n) for n in NUMBERS] == [b"it is %d" % n for n in NUMBERS]
        assert Account(first).read() == account.read()
        assert Account(other).read() == {}, "objects of another kind"
        metrics = server.metrics()
        assert metrics.total("lmcache_mp_kv_event_readers") >= 3
        assert metrics.total("lmcache_mp_kv_events_sent_total") >= 2 * len(NUMBERS)


def test_who_is_late_hears_of_a_description_too(server: Server) -> None:
    with engines(server.url, 2, **EVENTS) as (first, second):
        account = Account(second)
        first.store("a", 3)
        assert account.read() == {3: IN_L1} and account.description(3) == b""
        describe(first, 3)
        assert account.read() == {3: IN_L1} and account.description(3) == b"it is 3"


def test_where_an_object_goes_is_told(new_server: Callable[..., Server], tmp_path: Path) -> None:
    server = new_server(*fs_flags(tmp_path)).start()
    with engines(server.url, 2, **EVENTS) as (first, second):
        account = Account(second)
        account.read()
        first.store("a", *NUMBERS)
        wait_written(server)
        assert account.read() == dict.fromkeys(NUMBERS, IN_L1 + IN_L2)
        clear_l1(server)
        assert account.read() == dict.fromkeys(NUMBERS, IN_L2)
        first.hits("b", *NUMBERS)
        assert account.read() == dict.fromkeys(NUMBERS, IN_L1 + IN_L2)
        first.client.call("clear", True, as_name=True)
        wait_until(lambda: account.read() == {}, "all is gone")
        assert account.begun == 1


def test_an_l2_that_was_found_again_is_told(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    kind = {"identity": b"l2" * 16, **EVENTS}
    server = new_server(*fs_flags(tmp_path)).start()
    with engines(server.url, **kind) as (engine,):
        engine.store("a", *NUMBERS)
        wait_written(server)
    server.stop()
    server.start()
    with engines(server.url, **kind) as (engine,):
        account = Account(engine)
        everything = dict.fromkeys(NUMBERS, IN_L2)
        wait_until(lambda: account.read() == everything, "it has been found")


def test_who_begins_anew_is_told_all_anew(server: Server) -> None:
    with engines(server.url, **EVENTS) as (engine,):
        account = Account(engine)
        engine.store("a", *NUMBERS)
        assert account.read() == account.read(begin=True) == dict.fromkeys(NUMBERS, IN_L1)
        assert account.begun == 2


@pytest.mark.parametrize("ready", [True, False])
def test_who_has_no_events_or_is_not_ready_is_told_nothing(server: Server, ready: bool) -> None:
    engine = Engine(server.url, events=not ready)
    if ready:
        engine.start()
    else:
        engine.attach()
    nothing = {"items": [], "begun": False, "whole": False, "more": False}
    assert engine.call("holdings", begin=True) == nothing
    assert engine.call("describe", items=[(0, block_hash(1), b"x")]) == 0
    engine.end_processes()
