"""Connections that say nothing, or do not read, must not keep those out that ask for health."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE_SECONDS = 30.0


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP, cut off whenever it is the peer's turn for ``PATIENCE_SECONDS``.

    uvicorn itself waits forever for a request's first byte, for the rest of it, and for an answer
    to be read, and each such connection counts against its limit.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        self._forgive()
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forgive()
        super().connection_lost(exc)

    def _watch(self) -> None:
        cycle = self.cycle
        if cycle and not cycle.more_body and not cycle.response_complete:
            self._forgive()  # it is our turn
        elif self._deadline is None:
            self._deadline = self.loop.call_later(PATIENCE_SECONDS, self.transport.abort)

    def _forgive(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
