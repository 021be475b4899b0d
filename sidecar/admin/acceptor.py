"""Accepts HTTP connections, so that whoever asks for health always gets in.

asyncio's own acceptor knows no limit, and where descriptors run out it logs a traceback for each
place in the backlog, every second.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Sequence

from sidecar.admin.connections import ImpatientProtocol
from sidecar.limits import connection_limit

_log = logging.getLogger(__name__)

# Kept open for nothing, and closed for a connection when there are no others.
_RESERVED_DESCRIPTORS = 4
_RETRY_SECONDS = 0.1
_LOG_SECONDS = 60.0


class Acceptor:
    """Accepts on ``sockets``, so many connections as `connection_limit` allows.

    One more takes the place of the one whose peer has been silent for longest. So peers that open
    connections and do not use them, or do not read, keep nobody out. ``connections`` are those
    that are open, as the protocol keeps them.
    """

    def __init__(
        self,
        sockets: Sequence[socket.socket],
        protocol: Callable[[], ImpatientProtocol],
        connections: set[ImpatientProtocol],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._protocol = protocol
        self._connections = connections
        self._arriving: set[asyncio.Task[object]] = set()
        self._most = connection_limit()
        self._reserve: list[int] = []
        self._logged = -_LOG_SECONDS
        self._closed = False
        self._reserve_descriptors()
        for each in sockets:
            each.setblocking(False)
            self._resume(each)

    def close(self) -> None:
        """Accept no more. The sockets stay open."""
        self._closed = True
        for each in self._sockets:
            self._loop.remove_reader(each)
        while self._reserve:
            os.close(self._reserve.pop())

    def _resume(self, listener: socket.socket) -> None:
        if not self._closed:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            peer, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            self._out_of_descriptors(listener, error)
            return
        self._reserve_descriptors()
        while len(self._connections) + len(self._arriving) >= self._most:
            if not self._drop_one():
                break
        peer.setblocking(False)
        arriving = self._loop.connect_accepted_socket(self._protocol, peer)
        task = self._loop.create_task(arriving)
        self._arriving.add(task)
        task.add_done_callback(self._arrived)

    def _arrived(self, task: "asyncio.Task[object]") -> None:
        self._arriving.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.debug("an HTTP connection broke at once: %s", task.exception())

    def _drop_one(self) -> bool:
        """The one that waits for its peer, else any: the one not heard of for longest."""
        if not self._connections:
            return False
        silent = min(self._connections, key=lambda each: (not each.waits, each.heard))
        self._connections.discard(silent)
        silent.transport.abort()
        return True

    def _out_of_descriptors(self, listener: socket.socket, error: OSError) -> None:
        now = self._loop.time()
        if now - self._logged >= _LOG_SECONDS:
            self._logged = now
            _log.error("no room for another HTTP connection: %s", error.strerror)
        if self._reserve:
            os.close(self._reserve.pop())
            return
        self._drop_one()
        self._loop.remove_reader(listener)
        self._loop.call_later(_RETRY_SECONDS, self._resume, listener)

    def _reserve_descriptors(self) -> None:
        try:
            while len(self._reserve) < _RESERVED_DESCRIPTORS:
                self._reserve.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            pass  # some other time
