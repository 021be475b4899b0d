"""A publisher's sockets are libzmq's, which takes any number of readers: ours does not."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest
import zmq

from sidecar import limits
from sidecar.wire import readers
from sidecar.wire.publisher import Publisher
from tests.support.server import free_port, wait_until

MOST = 5


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Of a publisher."""
    monkeypatch.setattr(limits, "_MOST_CONNECTIONS", MOST)
    port = free_port()
    publisher = Publisher(f"tcp://127.0.0.1:{port}", "", lambda count: None)
    yield port
    publisher.close()


def connect(port: int) -> socket.socket:
    """A peer that has been greeted, or is none any more."""
    peer = socket.create_connection(("127.0.0.1", port), 30)
    peer.settimeout(30)
    return peer


def is_open(peer: socket.socket) -> bool:
    """Whether the server has not closed it; its greeting may be unread."""
    try:
        while select.select([peer], [], [], 0)[0]:
            if not peer.recv(4096):
                return False
    except ConnectionError:
        return False
    return True


def test_readers_beyond_the_bound_are_closed_and_those_before_are_not(port: int) -> None:
    peers = [connect(port) for _ in range(MOST)]
    for peer in peers:
        peer.recv(1)
    more = [connect(port) for _ in range(40)]
    wait_until(lambda: not any(map(is_open, more)), "those beyond the bound to be closed")
    assert all(map(is_open, peers))
    for peer in [*peers[:2], *more]:
        peer.close()
    wait_until(lambda: is_served(port), "one to have the place of one that has left")
    for peer in peers[2:]:
        assert is_open(peer)
        peer.close()


def is_served(port: int) -> bool:
    """Whether a subscriber is let in, and not closed at once."""
    with zmq.Context() as context, context.socket(zmq.SUB) as reader:
        reader.linger = 0
        events = reader.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
        reader.connect(f"tcp://127.0.0.1:{port}")
        succeeded = events.poll(1000) and not (events.recv_multipart(), events.poll(200))[1]
        reader.disable_monitor()
        return bool(succeeded)


def test_a_descriptor_that_is_something_else_now_is_left_alone(port: int) -> None:
    """libzmq may have closed the connection meanwhile, and somebody else opened a file."""
    here, there = socket.socketpair()
    with here, there, socket.create_connection(("127.0.0.1", port)) as other:
        for fd in (here.fileno(), other.fileno(), 2**20):
            readers.end(fd, f"tcp://127.0.0.1:{port}")
        here.send(b"x")
        assert there.recv(1) == b"x" and other.recv(1)
