"""Block ids of a request: as many as there may be, over all its lists."""

from __future__ import annotations

import msgspec
import pytest

from sidecar.wire.messages import BadPayload, BlockIdsDecoder

MOST = BlockIdsDecoder.MAX_BLOCK_IDS


def lists(*counts: int) -> bytes:
    return msgspec.msgpack.encode([[1] * count for count in counts])


@pytest.mark.parametrize("counts", [(MOST,), (MOST // 2, MOST // 2), (MOST - 1, 1, 0)])
def test_as_many_as_there_may_be(counts: tuple[int, ...]) -> None:
    assert list(map(len, BlockIdsDecoder().decode(lists(*counts)))) == list(counts)


@pytest.mark.parametrize("counts", [(MOST + 1,), (MOST // 2, MOST // 2 + 1), (MOST, 0, 1)])
def test_one_more_is_refused(counts: tuple[int, ...]) -> None:
    """However it is spread over lists."""
    with pytest.raises(BadPayload, match=f"{MOST + 1} block ids, the limit is {MOST}"):
        BlockIdsDecoder().decode(lists(*counts))


def test_a_flat_list_has_the_same_bound() -> None:
    assert len(BlockIdsDecoder().decode(msgspec.msgpack.encode([1] * MOST))[0]) == MOST
    with pytest.raises(msgspec.ValidationError):
        BlockIdsDecoder().decode(msgspec.msgpack.encode([1] * (MOST + 1)))


def test_far_too_many_are_not_decoded() -> None:
    """Nor is what is not msgpack at all: its length has told."""
    with pytest.raises(BadPayload, match="bytes of block ids"):
        BlockIdsDecoder().decode(b"\xc1" * (5 * MOST + 1025))
