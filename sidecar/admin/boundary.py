"""What holds for every request: who may ask, a bounded body, and the headers of an answer."""

from email.utils import formatdate
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sidecar.admin.origin import objection

# A prefetch names up to a million tokens.
MAX_BODY_BYTES = 10 << 20


class Boundary:
    """ASGI middleware around a whole application."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        """`host` is where the application is configured to listen."""
        self._app = app
        self._host = host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 403; a body beyond ``MAX_BODY_BYTES`` becomes a 413."""
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                detail = f"the body has more than {MAX_BODY_BYTES} bytes"
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, detail)
            return message

        async def send_dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                # The HTTP server itself would need a timer to know the date.
                headers["date"] = formatdate(usegmt=True)
                headers["cache-control"] = "no-store"
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        refused = objection(scope["method"], Headers(scope=scope), scope["server"][0], self._host)
        answer = JSONResponse({"detail": refused}, HTTPStatus.FORBIDDEN) if refused else self._app
        await answer(scope, receive_bounded, send_dated)
