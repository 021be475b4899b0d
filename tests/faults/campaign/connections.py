"""Neighbours below the protocol: bytes, frames and connections."""

from __future__ import annotations

import contextlib
import socket
import time

from sidecar.wire.zmtp import GREETING, encode
from tests.faults.campaign.target import Neighbour, Target
from tests.support.raw import OPERATIONS
from tests.support.raw import encode as value
from tests.support.zmtp import HELLO, READY, RawPeer

MIB = 1 << 20
_UNFINISHED = slice(None, -2)  # without its last, empty frame a message has no end


def _push(peer: RawPeer, data: bytes, target: Target) -> None:
    """All of `data`, as fast as the server takes it."""
    rest = memoryview(data)
    while rest and target.goes_on():
        try:
            rest = rest[peer.stream.send(rest) :]
        except BlockingIOError:
            time.sleep(0.0005)


def _unfinished(target: Target, operation: str) -> RawPeer:
    """A peer that has begun a request."""
    begun = encode([value(1), value(OPERATIONS[operation]), b""])[_UNFINISHED]
    return RawPeer.tcp(target.port, begun)


def endless_message(target: Target) -> None:
    """Frames with MORE and no end, as fast as they are taken."""
    peer = _unfinished(target, "store")
    piece = encode([bytes(MIB), b""])[_UNFINISHED]
    while target.goes_on():
        _push(peer, piece, target)


def endless_small_frames(target: Target) -> None:
    """The same with frames of one byte: what costs is their number."""
    peer = _unfinished(target, "ping")
    piece = b"\x01\x01x" * 100_000
    while target.goes_on():
        _push(peer, piece, target)


def hoarders(target: Target) -> None:
    """Forty connections, each with a large message that lacks its last byte."""
    part = encode([value(1), value(OPERATIONS["commit_store"]), bytes(60 * MIB)])[:-1]
    peers = [RawPeer.tcp(target.port) for _ in range(40)]
    for peer in peers:
        with contextlib.suppress(ConnectionError):
            _push(peer, part, target)
    target.stay()


def oversized_messages(target: Target) -> None:
    """Beyond the limit, one after the other."""
    peer = RawPeer.tcp(target.port)
    message = encode([value(1), value(OPERATIONS["commit_store"]), bytes(80 * MIB)])
    while target.goes_on():
        _push(peer, message, target)


def never_reads(target: Target) -> None:
    """Asks and asks and reads no answer."""
    peer = RawPeer.tcp(target.port)
    requests = encode([value(1), value(OPERATIONS["noop"])]) * 10_000
    while target.goes_on():
        _push(peer, requests, target)


def broken_greetings(target: Target) -> None:
    """Connections by the hundred that say nothing, something else, or half of it."""
    says = [
        b"",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        GREETING[:20],
        GREETING,
        GREETING + READY[:5],
        HELLO + b"\x02" + bytes([0xFF] * 8),
        HELLO + b"\xff\xff\xff",
    ]
    kept: list[socket.socket] = []
    while target.goes_on():
        with contextlib.suppress(OSError):
            stream = socket.create_connection(("127.0.0.1", target.port))
            noise = target.random.randbytes(target.random.randrange(200))
            stream.send(target.random.choice([*says, noise]))
            kept.append(stream)
        for old in kept[: max(0, len(kept) - 200)]:
            old.close()
        del kept[:-200]


def heartbeats(target: Target) -> None:
    """ZMTP's own PING, without end; the answers are not read."""
    peer = RawPeer.tcp(target.port)
    pings = (b"\x04\x17\x04PING\x00\x00" + bytes(16)) * 2000
    while target.goes_on():
        _push(peer, pings, target)


ROWS: dict[str, Neighbour] = {
    "a message without an end": endless_message,
    "small frames without an end": endless_small_frames,
    "forty large messages that lack a byte": hoarders,
    "messages beyond the limit": oversized_messages,
    "answers that are not read": never_reads,
    "broken greetings": broken_greetings,
    "heartbeats without an end": heartbeats,
}
