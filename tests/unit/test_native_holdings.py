"""What an engine reads of where its objects are is bounded, and begins anew where it has a gap."""

from __future__ import annotations

from sidecar.cache.changes import Changes, Medium
from sidecar.cache.keys import SpaceKey
from sidecar.handlers.native.descriptions import Descriptions, Name
from sidecar.handlers.native.holdings import MOST_DESCRIBED, Reader

SPACE, OTHER = (SpaceKey("model", 1, group, "", bytes(16)) for group in (0, 1))


def hash_of(number: int) -> bytes:
    return number.to_bytes(32, "big")


def reader(changes: Changes) -> Reader:
    return Reader((SPACE,), changes.begin(), iter(()))


def test_who_stops_goes_on_where_it_stopped() -> None:
    changes = Changes()
    each = reader(changes)
    changes.stored(Medium.CPU, SPACE, [hash_of(n) for n in range(5)])
    changes.removed(Medium.CPU, OTHER, [hash_of(9)])
    taken = []
    while each.has_more(changes):
        assert each.follow(changes)
        for one in each.take():
            taken.append(one)
            break
    assert taken == [(0, hash_of(n)) for n in range(5)] and each.whole


def test_a_gap_in_the_changes_is_seen() -> None:
    changes = Changes(most=3)
    each = reader(changes)
    for number in range(4):
        changes.stored(Medium.CPU, SPACE, [hash_of(number)])
    assert not each.follow(changes)


def test_a_gap_in_what_was_described_is_seen() -> None:
    changes = Changes()
    each = reader(changes)
    for number in range(MOST_DESCRIBED):
        each.hear([(0, hash_of(number))])
    assert each.follow(changes)
    each = reader(changes)
    for number in range(2):
        each.hear([(0, hash_of(number))] * MOST_DESCRIBED)
    assert not each.follow(changes)
    assert sum(1 for _ in each.take()) == MOST_DESCRIBED + 1


def test_what_is_there_is_remembered_rather_than_what_is_not() -> None:
    there = {Name(SPACE, hash_of(0))}
    descriptions = Descriptions(lambda name: name in there, most=3)
    for number in range(10):
        assert descriptions.put(Name(SPACE, hash_of(number)), b"x%d" % number)
    assert len(descriptions) == 3
    assert [n for n in range(10) if descriptions.get(Name(SPACE, hash_of(n)))] == [0, 8, 9]
    assert not descriptions.put(Name(SPACE, hash_of(9)), b"x9"), "no news"
    assert not descriptions.put(Name(SPACE, hash_of(9)), b"")


def test_descriptions_are_bounded_though_all_is_there() -> None:
    descriptions = Descriptions(lambda name: True, most_bytes=100)
    for number in range(50):
        descriptions.put(Name(SPACE, hash_of(number)), bytes(30))
        descriptions.put(Name(SPACE, hash_of(number)), bytes(10))
        assert descriptions.bytes == sum(
            len(descriptions.get(Name(SPACE, hash_of(n)))) for n in range(50)
        )
    assert 0 < descriptions.bytes <= 100
