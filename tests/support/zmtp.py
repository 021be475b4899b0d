"""Peers that speak ZMTP by hand, byte for byte."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path

from sidecar.wire.zmtp import GREETING

READY = b"\x04\x1c\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
HELLO = GREETING + READY


class RawPeer:
    """A connected stream socket that has said hello. It does not block."""

    def __init__(self, stream: socket.socket, hello: bytes = HELLO) -> None:
        self.stream = stream
        self.stream.setblocking(False)
        self.send(hello)

    @classmethod
    def unix(cls, path: Path, hello: bytes = HELLO) -> RawPeer:
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(str(path))
        return cls(stream, hello)

    @classmethod
    def tcp(cls, port: int, then: bytes = b"") -> RawPeer:
        """It waits for the server's greeting, as libzmq does, before it says READY and `then`."""
        peer = cls(socket.create_connection(("127.0.0.1", port)), GREETING)
        greeted = 0
        while greeted < len(GREETING):
            select.select([peer.stream], [], [], 10)
            greeted += len(peer.receive())
        peer.send(READY + then)
        return peer

    def send(self, data: bytes) -> None:
        """All of it, at once."""
        assert self.stream.send(data) == len(data)

    def try_send(self, data: bytes) -> bool:
        """All of it if it is taken; whether it was."""
        try:
            self.send(data)
        except BlockingIOError:
            return False
        return True

    def send_all(self, data: bytes, meanwhile: Callable[[], None]) -> None:
        """Piece by piece; `meanwhile` makes the other side read. As far as it lives."""
        rest = memoryview(data)
        with contextlib.suppress(ConnectionError):
            while rest:
                with contextlib.suppress(BlockingIOError):
                    rest = rest[self.stream.send(rest[: 64 << 10]) :]
                meanwhile()

    def receive(self) -> bytes:
        """What has arrived; empty if nothing has."""
        try:
            return self.stream.recv(1 << 20)
        except BlockingIOError:
            return b""

    def is_closed(self, within: float = 10.0) -> bool:
        """Whether the other side ends the connection."""
        end = time.monotonic() + within
        while time.monotonic() < end:
            try:
                if not self.stream.recv(1 << 20):
                    return True
            except BlockingIOError:
                time.sleep(0.01)
            except ConnectionError:
                return True
        return False

    def close(self) -> None:
        self.stream.close()
