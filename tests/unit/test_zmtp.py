"""Bytes are the messages that libzmq means by them, however they arrive, and memory is bounded."""

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.wire.zmtp import GREETING, Decoder, Message, ProtocolError, encode
from tests.support.zmtp import HELLO, READY

LIMIT, FRAMES = 4096, 5
frame = st.one_of(st.binary(max_size=20), st.binary(min_size=250, max_size=400))
message = st.lists(frame, min_size=1, max_size=FRAMES)
ping = st.binary(max_size=30).map(
    lambda context: b"\x04" + bytes([5 + 2 + len(context)]) + b"\x04PING\x00\x00" + context
)


def decoder() -> Decoder:
    return Decoder(LIMIT, FRAMES)


def messages(decoder: Decoder) -> Iterator[Message]:
    while (found := decoder.next_message()) is not None:
        yield found


def pieces(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """`data`, cut where `cuts` say, modulo its length."""
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return (data[a:b] for a, b in itertools.pairwise(places))


@settings(deadline=None)
@given(st.lists(st.one_of(message, ping), max_size=12), st.lists(st.integers(0, 10**6)))
def test_messages_arrive_whole_however_they_are_cut(sent: list, cuts: list[int]) -> None:
    peer = decoder()
    data = HELLO + b"".join(x if isinstance(x, bytes) else encode(x) for x in sent)
    got = [m for piece in pieces(data, cuts) for m in (peer.feed(piece), *messages(peer)) if m]
    assert got == [Message(x, oversized=False) for x in sent if isinstance(x, list)]
    assert peer.ready and not peer.held
    pings = [x for x in sent if isinstance(x, bytes)]
    assert peer.answers.count(b"\x04PONG") >= len(pings)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=600)), st.booleans())
def test_no_bytes_raise_anything_else_or_are_kept_for_long(data: list[bytes], greets: bool) -> None:
    peer = decoder()
    try:
        for piece in [HELLO, *data] if greets else data:
            peer.feed(piece)
            for found in messages(peer):
                assert len(found.frames) <= FRAMES
            assert peer.held <= 2 * LIMIT + len(piece) + 64
    except ProtocolError:
        pass


@pytest.mark.parametrize("size", [0, 1, 100, 1000, LIMIT + 1, 5 * LIMIT])
def test_frames_with_more_and_no_end_are_not_kept(size: int) -> None:
    """Nor is the end, when it comes: the message is known by its first two frames."""
    peer = decoder()
    peer.feed(HELLO + b"\x01\x01u" + b"\x01\x01o")
    endless = encode([b"x" * size, b""])[:-2]
    for _ in range(200):
        peer.feed(endless)
        assert list(messages(peer)) == []
        assert peer.held <= LIMIT + 64
    peer.feed(encode([b"end"]))
    (found,) = messages(peer)
    assert found.frames[:2] == [b"u", b"o"] and len(found.frames) <= FRAMES
    assert found.oversized == (size * 3 > LIMIT)
    peer.feed(encode([b"v", b"o", b"next"]))
    assert list(messages(peer)) == [Message([b"v", b"o", b"next"], oversized=False)]


def test_a_size_that_cannot_be_is_waited_for_without_memory() -> None:
    peer = decoder()
    peer.feed(HELLO + b"\x01\x01u" + b"\x01\x01o" + b"\x02" + (2**63).to_bytes(8, "big"))
    for _ in range(100):
        peer.feed(bytes(100_000))
        assert peer.next_message() is None
        assert not peer.held > 10


@pytest.mark.parametrize(
    "wrong",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        GREETING[:9] + b"\x00" + GREETING[10:],
        GREETING[:10] + b"\x02" + GREETING[11:],
        GREETING.replace(b"NULL", b"CURV"),
        GREETING + encode([b"u", b"o"]),
        GREETING + READY.replace(b"READY", b"HELLO"),
        GREETING + READY.replace(b"DEALER", b"SUBSCR"),
        GREETING + READY.replace(b"\x00\x00\x00\x06", b"\xff\x00\x00\x06"),
        GREETING + b"\x06" + (2**40).to_bytes(8, "big"),
        HELLO + b"\x04\x00",
        HELLO + b"\x04\x02\xffx",
        HELLO + b"\xf8\x01x",
        HELLO + b"\x05\x01x",
        HELLO + b"\x03" + (2**40).to_bytes(8, "big"),
    ],
)
def test_what_no_client_of_ours_sends_ends_the_connection(wrong: bytes) -> None:
    peer = decoder()
    peer.feed(wrong)
    with pytest.raises(ProtocolError):
        list(messages(peer))
