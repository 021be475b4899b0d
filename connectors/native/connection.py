"""One connection to the sidecar: a DEALER that connects once, and never waits."""

import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import zmq
from zmq.utils.monitor import parse_monitor_message

# Messages that wait for the sidecar to read them. Beyond that it counts as stalled.
MOST_QUEUED = 512
# For what is still on its way when an engine ends.
LINGER_MS = 200
# libzmq reports nothing of a host's name that does not resolve, and never looks it up again.
# Longer than a resolver asks two servers.
CONNECT_SECONDS = 15.0


class Connection(Protocol):
    """What the client needs of a connection."""

    def send(self, frames: Sequence[bytes]) -> bool:
        """Queue a message. False: the sidecar does not read."""

    def receive(self) -> list[bytes] | None:
        """The frames of the next message, if one has arrived."""

    def ended(self) -> bool:
        """Whether it has ended, or was never made. No message goes anywhere any more."""

    def wait(self, milliseconds: int) -> None:
        """Until something arrives or happens; for threads that may wait."""

    def close(self) -> None:
        """Let go of it, whether it has ended or not."""


class Dealer:
    """A ZMTP connection by libzmq that is not made again when it ends.

    libzmq would reconnect by itself and deliver to a new sidecar what was queued for the old one,
    whose slots it names. So each connection has a socket of its own, and what is sent on it reaches
    one sidecar or nobody.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        url: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to connect to `url`, as `tcp://HOST:PORT` or `ipc:///PATH`.

        What is not made within CONNECT_SECONDS has ended.
        """
        self._socket = context.socket(zmq.DEALER)
        self._socket.linger = LINGER_MS
        self._socket.set(zmq.RECONNECT_IVL, -1)
        self._socket.set(zmq.SNDHWM, MOST_QUEUED)
        self._socket.set(zmq.IPV6, 1)
        self._events = self._socket.get_monitor_socket(
            zmq.EVENT_CONNECTED
            | zmq.EVENT_DISCONNECTED
            | zmq.EVENT_CLOSED
            | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        self._clock, self._give_up = clock, clock() + CONNECT_SECONDS
        self._made = self._ended = False
        self._socket.connect(url)

    def send(self, frames: Sequence[bytes]) -> bool:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[bytes] | None:
        if not _has_something(self._socket):
            return None
        return self._socket.recv_multipart(zmq.NOBLOCK)

    def ended(self) -> bool:
        while not self._ended and _has_something(self._events):
            event = parse_monitor_message(self._events.recv_multipart(zmq.NOBLOCK))["event"]
            # Any other that is watched is an end.
            self._made, self._ended = True, event != zmq.EVENT_CONNECTED
        if not self._made and self._clock() >= self._give_up:
            self._ended = True
        return self._ended

    def wait(self, milliseconds: int) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._events, zmq.POLLIN)
        poller.poll(milliseconds)

    def close(self) -> None:
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disable_monitor()
        self._events.close(linger=0)
        self._socket.close()


def _has_something(socket: "zmq.Socket[bytes]") -> bool:
    # Cheaper than an exception.
    events = socket.get(zmq.EVENTS)
    assert isinstance(events, int)
    return bool(events & zmq.POLLIN)
