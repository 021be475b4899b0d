"""The allocator never hands out a byte twice and never loses one."""

from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from sidecar.cache.extents import Extents

PIECE = 1 << 10


class ExtentsMachine(RuleBasedStateMachine):
    taken = Bundle("taken")

    def __init__(self) -> None:
        super().__init__()
        self.extents = Extents()
        self.size = 0
        self.used: dict[int, int] = {}

    @rule()
    def grow(self) -> None:
        self.extents.give(self.size, PIECE)
        self.size += PIECE

    @rule(target=taken, size=st.integers(1, 2 * PIECE))
    def take(self, size: int) -> int | None:
        start = self.extents.take(size)
        if start is None:
            assert all(free < size for _, free in self.extents.ranges())
        else:
            assert start >= 0 and start + size <= self.size
            assert all(start + size <= a or a + n <= start for a, n in self.used.items())
            self.used[start] = size
        return start

    @rule(start=consumes(taken))
    def give(self, start: int | None) -> None:
        if start is not None:
            self.extents.give(start, self.used.pop(start))

    @invariant()
    def nothing_is_lost(self) -> None:
        free = self.extents.ranges()
        assert sum(size for _, size in free) == self.extents.free_bytes
        assert self.extents.free_bytes + sum(self.used.values()) == self.size

    @invariant()
    def neighbours_are_merged(self) -> None:
        free = self.extents.ranges()
        assert all(a + n < b for (a, n), (b, _) in pairwise(free))


ExtentsMachine.TestCase.settings = settings(max_examples=60, deadline=None)
TestExtents = ExtentsMachine.TestCase


def test_a_freed_slot_is_used_before_fresh_memory() -> None:
    extents = Extents()
    extents.give(0, 100)
    slots = [extents.take(10) for _ in range(3)]
    assert slots == [0, 10, 20]
    extents.give(10, 10)
    assert extents.take(10) == 10


@pytest.mark.parametrize(("start", "size"), [(0, 4), (4, 4), (0, 8)])
def test_what_is_free_is_not_given_again(start: int, size: int) -> None:
    extents = Extents()
    extents.give(0, 8)
    with pytest.raises(AssertionError, match="free already"):
        extents.give(start, size)
    assert (extents.ranges(), extents.free_bytes) == ([(0, 8)], 8)
