"""What is remembered of the requests of native engines: what matters most, and not too much."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cache.entry import Entry, Space, sizes_of
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.policies import POLICIES
from sidecar.cache.quotas import Quotas
from sidecar.handlers.native import engines as module
from sidecar.handlers.native.engines import Engine, Engines
from sidecar.wire.native import Attach

MOST = 40
LOOKUPS = st.tuples(
    st.integers(0, 3), st.integers(0, 9), st.integers(0, 2), st.integers(0, 30), st.booleans()
)


def added(engines: Engines, number: int = 0) -> Engine:
    attach = Attach(1, f"e{number}", bytes(16), "m", 1, 3, 4096, 16, bytes(32))
    return engines.add(attach, b"client")


@given(st.lists(LOOKUPS, max_size=60))
def test_hashes_are_bounded_and_those_of_finished_requests_go_first(
    lookups: list[tuple[int, int, int, int, bool]],
) -> None:
    """Of an engine and of all together, however they are spread over requests and groups."""
    engines = Engines()
    ours = [added(engines, number) for number in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MAX_HASHES", MOST)
        for number, request, group, count, finishes in lookups:
            engine = ours[number]
            had = {id(r) for e in ours for r in e.requests.values() if r.sequences}
            known = engine.request(f"r{request}")
            assert known is not None
            engines.remember(engine, known, group, [bytes(32)] * count)
            for each in ours:
                assert each.hashes == sum(r.hashes for r in each.requests.values()) <= MOST // 2
                known_of = list(each.requests.values())
                lost = [r for r in known_of if id(r) in had and not r.sequences]
                over = [r for r in known_of if r.sequences and r.finished and r is not known]
                assert not over or all(r.finished for r in lost), "of one under way"
            assert sum(each.hashes for each in ours) <= MOST
            if count <= MOST // 4 and not any(g != group for g in known.sequences):
                assert engine.sequence(f"r{request}", group) == [bytes(32)] * count, "the latest"
            known.finished += finishes


def test_requests_that_hold_something_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that hold nothing are forgotten for others."""
    monkeypatch.setattr(module, "_MAX_REQUESTS", 3)
    monkeypatch.setattr(module, "_MAX_HOLDING", 5)
    engine = added(Engines())
    space = Space(L1(0, POLICIES["LRU"](Quotas(1))), SpaceKey("m", 1, 0, "", b""))
    for number in range(9):
        assert engine.request(f"idle {number}") is not None
    assert list(engine.requests) == ["idle 6", "idle 7", "idle 8"]
    for number in range(5):
        known = engine.request(f"holds {number}")
        assert known is not None
        known.pins[Entry(space, bytes(32), 0, sizes_of(1, 0))] = None
    assert list(engine.requests) == [f"holds {number}" for number in range(5)]
    assert engine.request("one more") is None and engine.request("holds 0") is known_of(engine, 0)
    known_of(engine, 3).pins.clear()
    assert engine.request("one more") is not None and len(engine.requests) == 5


def known_of(engine: Engine, number: int) -> module.NativeRequest:
    return engine.requests[f"holds {number}"]
