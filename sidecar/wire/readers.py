"""How many peers a listening socket of libzmq has: libzmq takes them without an end."""

import logging
import socket
import threading
from contextlib import suppress

import zmq
from zmq.utils.monitor import parse_monitor_message

from sidecar.limits import connection_limit

log = logging.getLogger(__name__)

_CLOSE_SECONDS = 2.0


class Readers:
    """Closes connections of `socket` beyond `connection_limit()`, as they come.

    libzmq tells of each by its descriptor, and closes it when it finds it shut down.
    """

    def __init__(self, socket: "zmq.Socket[bytes]") -> None:
        """Before it is bound."""
        self._socket = socket
        told_of = zmq.Event.ACCEPTED | zmq.Event.DISCONNECTED | zmq.Event.MONITOR_STOPPED
        self._events = socket.get_monitor_socket(told_of)
        self._most = connection_limit()
        self._open: set[int] = set()
        self._thread = threading.Thread(target=self._run, name="kv-events-readers", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Before the socket is closed."""
        self._socket.disable_monitor()
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        with self._events as events:
            while True:
                told = parse_monitor_message(events.recv_multipart())
                if told["event"] == zmq.Event.MONITOR_STOPPED:
                    return
                self._see(told["event"], told["value"], told["endpoint"].decode())

    def _see(self, event: int, fd: int, endpoint: str) -> None:
        if event == zmq.Event.DISCONNECTED:
            self._open.discard(fd)
        elif len(self._open) < self._most:
            self._open.add(fd)
        else:
            log.debug("no more than %d readers of %s", self._most, endpoint)
            end(fd, endpoint)


def end(fd: int, endpoint: str) -> None:
    """Shut a connection to `endpoint` down, if that is still what has this descriptor."""
    with suppress(OSError):
        peer = socket.socket(fileno=fd)
        try:
            address = peer.getsockname()
            place = address if isinstance(address, str) else f":{address[1]}"
            if place and endpoint.endswith(place):
                peer.shutdown(socket.SHUT_RDWR)
        finally:
            peer.detach()
