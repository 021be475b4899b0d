"""What holds for every request: who may ask, bounded bodies, and the headers of an answer."""

import asyncio
from email.utils import formatdate
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.admin.origin import Names, objection

# A prefetch names up to a million tokens.
MAX_BODY_BYTES = 10 << 20
# Of all requests that are under way together.
MAX_BODIES_BYTES = 4 * MAX_BODY_BYTES
# That are under way together: the peer of some may have gone, and they go on.
MAX_REQUESTS = 64
_HEALTH = ("/healthcheck", "/api/healthcheck")


class Boundary:
    """ASGI middleware around a whole application."""

    def __init__(self, app: ASGIApp, names: Names) -> None:
        """`names` are those of the server."""
        self._app = app
        self._names = names
        self._body_bytes = 0
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403; a body beyond ``MAX_BODY_BYTES`` becomes a 413.

        Too many requests or bodies together become a 503, but no question for health; so does what
        is cut off by the server's end.
        """
        received = 0
        has_begun = False

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            size = len(message.get("body", b""))
            received += size
            self._body_bytes += size
            if received > MAX_BODY_BYTES:
                detail = f"the body has more than {MAX_BODY_BYTES} bytes"
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            if self._body_bytes > MAX_BODIES_BYTES:
                raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "too many large requests")
            return message

        async def send_dated(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                headers = MutableHeaders(scope=message)
                # The HTTP server itself would need a timer to know the date.
                headers["date"] = formatdate(usegmt=True)
                headers["cache-control"] = "no-store"
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        if scope["method"] == "HEAD":
            # Whatever can be got; the HTTP server leaves the body out.
            scope = {**scope, "method": "GET"}
        self._under_way += 1
        try:
            await self._answer(scope)(scope, receive_bounded, send_dated)
        except asyncio.CancelledError:
            if not has_begun:
                stopping = JSONResponse({"detail": "shutting down"}, HTTPStatus.SERVICE_UNAVAILABLE)
                await stopping(scope, receive, send_dated)
        finally:
            self._body_bytes -= received
            self._under_way -= 1

    def _answer(self, scope: Scope) -> ASGIApp:
        refused = objection(scope["method"], Headers(scope=scope), scope["server"][0], self._names)
        if refused:
            return JSONResponse({"detail": refused}, HTTPStatus.FORBIDDEN)
        if self._under_way > MAX_REQUESTS and scope["path"] not in _HEALTH:
            detail = "too many requests at once"
            return JSONResponse({"detail": detail}, HTTPStatus.SERVICE_UNAVAILABLE)
        return self._app
