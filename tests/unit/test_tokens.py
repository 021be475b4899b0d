"""Remembered token lists never change what a list decodes to."""

import struct

import msgspec
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.keys import ROOT, chunk_hashes
from sidecar.wire.messages import NO_TOKENS, BadPayload, CacheKey
from sidecar.wire.tokens import TokenLists
from tests.support.node import Node
from tests.support.raw import make_key
from tests.support.tiers import Bench

encode = msgspec.msgpack.encode
CHUNK = 4
token = st.one_of(
    st.integers(0, 200),
    st.integers(120, 300),
    st.integers(65_000, 66_000),
    st.integers(0, 2**32 - 1),
)


def big_endian(tokens: list[int]) -> bytes:
    return struct.pack(f">{len(tokens)}I", *tokens)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(token, max_size=60),
    st.lists(st.tuples(st.integers(0, 60), st.lists(token, max_size=20)), max_size=6),
)
def test_lists_that_share_prefixes_decode_right(first: list[int], tails: list[tuple]) -> None:
    lists = TokenLists(1000, CHUNK)
    for number, (cut, tail) in enumerate([(0, first), *tails]):
        tokens = first[:cut] + tail
        for request in (f"r{number}", "same", f"r{number}"):
            decoded = lists.decode(request, msgspec.Raw(encode(tokens)))
            assert decoded.data == big_endian(tokens)
            chunks = len(tokens) // CHUNK
            fresh = chunk_hashes([], decoded.data, CHUNK, chunks)
            assert chunk_hashes(decoded.chain, decoded.data, CHUNK, chunks) == fresh


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536, 100_000])
def test_every_array_header(count: int) -> None:
    tokens = [i * 7 for i in range(count)]
    lists = TokenLists(200_000, CHUNK)
    assert lists.decode("r", msgspec.Raw(encode(tokens))).data == big_endian(tokens)
    longer = [*tokens, 5]
    assert lists.decode("r", msgspec.Raw(encode(longer))).data == big_endian(longer)


def test_a_request_under_way_does_not_hold_its_message() -> None:
    """The encoded tokens are a part of it, up to `--max-message-mb`."""
    node = Node(Bench(slots=1))
    fields = make_key(list(range(64)), 0, 64, model="m")
    key = msgspec.msgpack.decode(encode(fields), type=CacheKey)
    assert len(node.core.hashes(key, 64)) > 0
    assert key.token_ids == NO_TOKENS
    node.close()


def test_a_longer_encoding_of_the_same_numbers_is_not_confused() -> None:
    lists = TokenLists(10, CHUNK)
    plain = msgspec.Raw(b"\x92\x01\x02")
    padded = msgspec.Raw(b"\x92\xcd\x00\x01\xcd\x00\x02")
    for _ in range(2):
        assert lists.decode("r", plain).data == lists.decode("r", padded).data == big_endian([1, 2])


@pytest.mark.parametrize(
    "raw",
    [encode([1] * 11), encode([-1]), encode([2**32]), encode(["a"]), encode([1.5]), encode([[1]]),
     encode({}), encode("tokens"), encode(None), b"\x93\x01"],
)  # fmt: skip
def test_what_is_no_list_of_tokens_is_refused(raw: bytes) -> None:
    with pytest.raises(BadPayload):
        TokenLists(10, CHUNK).decode("r", msgspec.Raw(raw))


def test_memory_is_bounded() -> None:
    lists = TokenLists(10_000, CHUNK, max_bytes=100_000)
    for i in range(100):
        lists.decode(f"r{i}", msgspec.Raw(encode([i, *range(1000)])))
    assert 0 < lists.remembered_bytes <= 100_000


def test_chunk_hashes_are_the_chain_that_clients_know() -> None:
    assert ROOT.hex() == "7e3eff9ef7613a50340eb12677ee03b83ac759fcba9bb32705f07248d56d473b"
    tokens = big_endian(list(range(10)))
    first = blake3(ROOT + tokens[:16]).digest()
    second = blake3(first + tokens[16:32]).digest()
    chain: list[bytes] = []
    assert chunk_hashes(chain, tokens, 4, 1) == [first]
    assert chunk_hashes(chain, tokens, 4, 2) == [first, second]
    assert chunk_hashes(chain, tokens, 4, 1) == [first]


def test_a_request_that_ended_is_forgotten_but_not_its_prefix() -> None:
    lists = TokenLists(10_000, CHUNK)
    tokens = list(range(1000))
    lists.decode("r", msgspec.Raw(encode(tokens)))
    both = lists.remembered_bytes
    lists.forget("r")
    lists.forget("unknown")
    assert 0 < lists.remembered_bytes < both
    assert lists.decode("s", msgspec.Raw(encode([*tokens, 7]))).data == big_endian([*tokens, 7])
