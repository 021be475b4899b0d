"""The order of use is that of a plain list, whatever its buckets are."""

from __future__ import annotations

from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.tiers import use_order
from sidecar.tiers.names import ObjectName
from sidecar.tiers.use_order import UseOrder

NAMES = [ObjectName("space", bytes([number])) for number in range(24)]
STEPS = ("add", "add_oldest", "use", "make oldest", "remove", "pop")


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from(NAMES)), max_size=200))
def test_it_is_the_order_of_a_list(steps: list[tuple[str, ObjectName]]) -> None:
    """The sizes are those that were given, and it is known what was not used since it was old."""
    order, model = UseOrder(), dict[ObjectName, int]()
    in_order: list[ObjectName] = []
    old: set[ObjectName] = set()
    with patch.object(use_order, "_BUCKET", 4), patch.object(use_order, "_SHRINK_AT", (2,)):
        for size, (step, name) in enumerate(steps):
            is_there = name in model
            if step == "remove":
                assert order.remove(name) == model.pop(name, None)
            elif step == "pop" and model:
                name, popped = order.popitem()
                assert popped == model.pop(name)
                is_there = True
            elif step.startswith("add") and not is_there:
                getattr(order, step)(name, size)
                model[name] = size
            elif step in ("use", "make oldest") and is_there:
                order.move(name, last=step == "use")
            else:
                continue
            if is_there:
                in_order.remove(name)
            old.discard(name)
            if name in model:
                is_old = step in ("add_oldest", "make oldest")
                in_order.insert(0 if is_old else len(in_order), name)
                old |= {name} if is_old else set()
            assert order.names() == in_order
            assert list(order) == [(each, model[each]) for each in in_order]
            assert [order.size(each) for each in NAMES] == [model.get(each) for each in NAMES]
            assert {each for each in NAMES if order.is_old(each)} == old
            assert len(order) == len(model)


def test_nothing_comes_out_of_none() -> None:
    with pytest.raises(KeyError):
        UseOrder().popitem()


def test_one_that_stays_does_not_keep_the_room_of_its_neighbours() -> None:
    names = [ObjectName("space", number.to_bytes(2, "big")) for number in range(8500)]
    order = UseOrder()
    for name in names:
        order.add(name, 1)
    for number, name in enumerate(names):
        if number % 85:
            order.move(name, last=False)
    buckets = order._newer.values()
    assert [len(bucket) for bucket in buckets] == [1] * 100
    assert all(bucket.__sizeof__() < 400 for bucket in buckets)
