"""Asking supervisord (XML-RPC on its Unix socket) about the programs that it runs.

With the standard library: supervisor's own transport waits for an answer without a limit.
"""

import socket
import xmlrpc.client
from http.client import HTTPConnection
from typing import Any

_SECONDS = 10.0


class Supervisor:
    """The supervisord that listens at a path. Every call raises OSError or xmlrpc.client.Error
    where there is none, or none that answers."""

    def __init__(self, path: str) -> None:
        # The host only fills the HTTP header.
        self._server: Any = xmlrpc.client.ServerProxy("http://supervisor", _Transport(path))

    def programs(self) -> dict[str, dict[str, Any]]:
        """By program name what supervisor's `getAllProcessInfo` says of it."""
        return {info["name"]: info for info in self._server.supervisor.getAllProcessInfo()}

    def start(self, group: str, name: str) -> None:
        self._server.supervisor.startProcess(f"{group}:{name}", False)

    def shutdown(self) -> None:
        """Have it stop all programs, the highest priority first, and then end."""
        self._server.supervisor.shutdown()


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> HTTPConnection:
        return _UnixConnection(self._path)


class _UnixConnection(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("supervisor", timeout=_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(_SECONDS)
        self.sock.connect(self._path)
