"""True health: not that the process exists, but that it would answer a worker now."""

import asyncio
from http import HTTPStatus

from starlette.responses import JSONResponse, Response

from sidecar.admin.core import Service, WireLoop

_LOOP_SECONDS = 1.0


def unhealthy_reason(service: Service, loop: WireLoop) -> str | None:
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


async def health_response(service: Service, loop: WireLoop) -> Response:
    """200, or 503 with the reason."""
    reason = await asyncio.to_thread(unhealthy_reason, service, loop)
    if reason is None:
        return JSONResponse({"status": "healthy"})
    return JSONResponse({"status": "unhealthy", "reason": reason}, HTTPStatus.SERVICE_UNAVAILABLE)
