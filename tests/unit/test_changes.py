"""Readers of the changes go at their own pace, and are told when they were too slow."""

from __future__ import annotations

from sidecar.cache.changes import Changes, Medium
from sidecar.cache.keys import SpaceKey

SPACE = SpaceKey("model", 1, 0, "", bytes(16))


def test_nothing_is_noted_until_somebody_reads() -> None:
    changes = Changes()
    changes.stored(Medium.CPU, SPACE, [b"1"])
    cursor = changes.begin()
    changes.stored(Medium.CPU, SPACE, [])  # of nothing
    assert changes.since(cursor, 10) == ([], cursor, False)


def test_pages_follow_each_other() -> None:
    changes = Changes()
    cursor = changes.begin()
    news = changes.news.next()
    for number in range(5):
        changes.stored(Medium.CPU, SPACE, [bytes([number])])
    changes.removed(Medium.STORAGE, SPACE, [b"x"])
    assert news.done and not changes.news.next().done
    first, cursor, lost = changes.since(cursor, 4)
    assert [each.hashes for each in first] == [(bytes([n]),) for n in range(4)] and not lost
    second, cursor, lost = changes.since(cursor, 4)
    assert [each.stored for each in second] == [True, False] and not lost
    assert changes.since(cursor, 4) == ([], cursor, False)


def test_who_is_too_slow_is_told_and_goes_on_with_what_is_left() -> None:
    changes = Changes(most=3)
    cursor = changes.begin()
    for number in range(5):
        changes.stored(Medium.CPU, SPACE, [bytes([number])])
    page = changes.since(cursor, 10)
    assert page.lost and [each.hashes for each in page.changes] == [(b"\2",), (b"\3",), (b"\4",)]
    assert not changes.since(page.cursor, 10).lost
    # A cursor of somebody else's log.
    assert changes.since(10**6, 10) == ([], page.cursor, True)
    changes.removed(Medium.CPU, SPACE, [b"6", b"7", b"8", b"9"])  # more than is kept
    assert changes.since(page.cursor, 10).changes[0].hashes[0] == b"6"
    changes.stored(Medium.CPU, SPACE, [b"a"])
    assert changes.since(page.cursor, 10).lost
