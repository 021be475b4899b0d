"""One HTTP connection: no peer may keep it open by saying nothing, or by not reading."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE_SECONDS = 30.0


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP, cut off whenever it is the peer's turn for ``PATIENCE_SECONDS``.

    uvicorn itself waits forever for a request's first byte, for the rest of it, and for an answer
    to be read.
    """

    heard = 0.0  # the event loop's time at which the peer said something last
    _deadline: asyncio.TimerHandle | None = None

    @property
    def waits(self) -> bool:
        """Whether it is the peer's turn: to ask, to go on asking, or to read."""
        cycle = self.cycle
        ours = cycle and not cycle.more_body and not cycle.response_complete
        return self.flow.write_paused or not ours

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.heard = self.loop.time()
        self._watch()

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        super().data_received(data)
        self._watch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._forgive()
        self._watch()

    def on_response_complete(self) -> None:
        self._forgive()
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forgive()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server stops: what is being answered is finished, what is half asked is not."""
        if self.waits:
            self.transport.abort()
        else:
            super().shutdown()

    def _watch(self) -> None:
        if not self.waits:
            self._forgive()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(PATIENCE_SECONDS, self.transport.abort)

    def _forgive(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
