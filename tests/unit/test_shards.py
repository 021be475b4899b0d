"""Keys are read bit by bit while others come and go."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import given
from hypothesis import strategies as st

from sidecar.cache import shards
from sidecar.cache.shards import Shards

KEYS = [number.to_bytes(32, "big") for number in range(64)]
STEPS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(KEYS)), max_size=200)


@given(before=st.sets(st.sampled_from(KEYS)), steps=STEPS)
def test_what_stays_is_in_a_snapshot_once(
    before: set[bytes], steps: list[tuple[int, bytes]]
) -> None:
    with patch.object(shards, "_SPLIT_AT", 16), patch.object(shards, "_SHARDS", 4):
        there: Shards[bytes, int] = Shards()
        for key in before:
            there[key] = 1
        stayed, read, snapshot = set(before), list[bytes](), there.snapshot()
        for what, key in steps:
            if what == 0:
                there[key] = 1
            elif what == 1 and key in there:
                del there[key]
                stayed.discard(key)
            elif (one := next(snapshot, None)) is not None:
                read.append(one)
        read.extend(snapshot)
    assert stayed <= set(read)
    assert len(read) == len(set(read)), "twice"
