"""Records prove themselves: anything that is not the object asked for is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
import xxhash

from sidecar.cache.keys import SpaceKey
from sidecar.tiers.base import Bytes, Corrupt
from sidecar.tiers.record import HEADER_BYTES, seal, verify

SPACE = SpaceKey("org/model", 2, 1, "tenant", bytes(range(16)))
HASH = bytes(range(32))
LENGTH = 10_000


def sealed(space: SpaceKey = SPACE, missing: frozenset[int] = frozenset()) -> Bytes:
    record = np.zeros(HEADER_BYTES + 3 * 4096, np.uint8)
    record[HEADER_BYTES : HEADER_BYTES + LENGTH] = np.arange(LENGTH) % 251
    seal(record, space, HASH, LENGTH, missing)
    return record


def cause(record: Bytes, space: SpaceKey = SPACE, hash: bytes = HASH, length: int = LENGTH) -> str:
    with pytest.raises(Corrupt) as caught:
        verify(record, space, hash, length)
    return caught.value.cause


def test_a_record_verifies_and_tells_what_it_lacks() -> None:
    assert verify(sealed(), SPACE, HASH, LENGTH) == frozenset()
    assert verify(sealed(missing=frozenset({3, 1})), SPACE, HASH, LENGTH) == {1, 3}


def test_sealing_again_changes_nothing() -> None:
    record = sealed()
    before = record.copy()
    seal(record, SPACE, HASH, LENGTH, frozenset())
    assert (record == before).all()


@pytest.mark.parametrize(
    "other",
    [
        SPACE._replace(model_name="org/other"),
        SPACE._replace(world_size=4),
        SPACE._replace(rank=0),
        SPACE._replace(cache_salt=""),
        SPACE._replace(fingerprint=bytes(16)),
    ],
)
def test_another_space_is_another_object(other: SpaceKey) -> None:
    assert cause(sealed(), other) == "key"


def test_another_hash_and_another_length() -> None:
    assert cause(sealed(), hash=bytes(32)) == "key"
    assert cause(sealed(), length=LENGTH - 1) == "length"


def test_other_formats() -> None:
    record = sealed()
    record[8] = 2
    assert cause(record) == "version"
    assert cause(np.zeros_like(record)) == "magic"
    error_page = np.frombuffer(b"<?xml version='1.0'?><Error>".ljust(len(record)), np.uint8)
    assert cause(error_page) == "magic"


def test_a_flip_of_any_bit_is_seen() -> None:
    record = sealed()
    dice = random.Random(7)
    places = [*range(HEADER_BYTES), *(HEADER_BYTES + dice.randrange(LENGTH) for _ in range(200))]
    for place in places:
        record[place] ^= 1 << dice.randrange(8)
        with pytest.raises(Corrupt):
            verify(record, SPACE, HASH, LENGTH)
        record[:] = sealed()


@pytest.mark.parametrize("meta", [b"", b"\xff" * 40, b"\x97\xa1m" + b"\xc0" * 6])
def test_a_header_that_is_no_header(meta: bytes) -> None:
    """The checksum fits, what it protects makes no sense."""
    record = sealed()
    fixed = bytearray(record[:40].tobytes())
    fixed[12:16] = len(meta).to_bytes(4, "little")
    head = (bytes(fixed) + meta).ljust(HEADER_BYTES - 8, b"\0")
    record[:HEADER_BYTES] = np.frombuffer(head + xxhash.xxh3_64_digest(head), np.uint8)
    assert cause(record) == "header"


@pytest.mark.parametrize("length", [HEADER_BYTES, 2**32 - 1])
def test_a_meta_length_beyond_the_header(length: int) -> None:
    record = sealed()
    record[12:16] = np.frombuffer(length.to_bytes(4, "little"), np.uint8)
    assert cause(record) == "header"
