"""True health: not that the process exists, but that it would answer a worker now."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

from starlette.responses import JSONResponse, Response

from sidecar.handlers import Service
from sidecar.loop import Loop

_LOOP_SECONDS = 1.0


def unhealthy_reason(service: Service, loop: Loop) -> str | None:
    """None if the copy pool says that it is well and the wire loop answers within a second."""
    try:
        reason = service.health()
        if reason is None:
            loop.call(lambda: None, timeout=_LOOP_SECONDS)
        return reason
    except TimeoutError:
        return f"the wire loop has not answered for {_LOOP_SECONDS:g} s"
    except Exception as error:  # whatever it is, the server is not well
        return f"{type(error).__name__}: {error}"


class Health:
    """Asks on a thread of its own, once for all who want to know: no request is in its way."""

    def __init__(self, service: Service, loop: Loop) -> None:
        self._service = service
        self._loop = loop
        self._thread = ThreadPoolExecutor(1, "health")
        self._thread.submit(lambda: None)  # it is there from now on, whatever others start
        self._asking: asyncio.Future[str | None] | None = None

    def close(self) -> None:
        """Ask no more."""
        self._thread.shutdown(wait=False)

    async def reason(self) -> str | None:
        """None, or why the server would not answer a worker now."""
        if self._asking is None or self._asking.done():
            events = asyncio.get_running_loop()
            self._asking = events.run_in_executor(
                self._thread, unhealthy_reason, self._service, self._loop
            )
        return await asyncio.shield(self._asking)

    async def response(self) -> Response:
        """200, or 503 with the reason."""
        reason = await self.reason()
        if reason is None:
            return JSONResponse({"status": "healthy"})
        content = {"status": "unhealthy", "reason": reason}
        return JSONResponse(content, HTTPStatus.SERVICE_UNAVAILABLE)
