"""A TCP hop between a client and a server, as a proxy or a network is one, which can be cut."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Hop:
    """Relays to `port` of this machine; `cut` breaks what is connected, new ones are relayed.

    While it `lingers` it keeps its connection to the server when the client's has ended.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self.lingers = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._near: list[socket.socket] = []
        self._far: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break both sides of all connections, or while it lingers the clients' sides."""
        ends, self._near = self._near, []
        if not self.lingers:
            ends += self._far
            self._far = []
        for end in ends:
            _shut(end)

    def close(self) -> None:
        """Break all, and relay nothing any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._near.append(near)
                self._far.append(far)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._relay, args=ends, daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        if not self.lingers:
            _shut(source)
            _shut(target)


def _shut(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
