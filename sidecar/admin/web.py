"""The HTTP servers of the admin thread. Imports uvicorn and FastAPI."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from sidecar.admin.acceptor import Acceptor
from sidecar.admin.connections import ImpatientProtocol


async def serve(
    sites: Sequence[tuple[ASGIApp, list[socket.socket]]],
    stop: asyncio.Event,
    started: Callable[[], None],
) -> None:
    """Answer on the sockets of each site until ``stop``; call ``started`` when all do."""
    servers = [_Server(app, stop) for app, _ in sites]
    running = asyncio.gather(
        *(server.serve(sockets) for server, (_, sockets) in zip(servers, sites, strict=True))
    )
    for server in servers:
        await server.accepting.wait()
    started()
    await running


class _Server(uvicorn.Server):
    """uvicorn with an acceptor of our own, and without its timer, which wakes ten times a second
    to look for a stop.
    """

    def __init__(self, app: ASGIApp, stop: asyncio.Event) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=ImpatientProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                # Its warnings are of what a peer sends, as often as it likes.
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                timeout_graceful_shutdown=1,
            )
        )
        self._stop = stop
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # All of this server's are of this kind.
        connections = cast("set[ImpatientProtocol]", self.server_state.connections)
        self.servers = []
        self._acceptor = Acceptor(sockets or [], self._protocol, connections)
        self.started = True

    async def main_loop(self) -> None:
        self.accepting.set()
        await self._stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._acceptor.close()
        await super().shutdown(sockets)

    def _protocol(self) -> ImpatientProtocol:
        return ImpatientProtocol(self.config, self.server_state, self.lifespan.state)
