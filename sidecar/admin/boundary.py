"""What holds for every request: a bounded body, and the headers of an answer."""

from email.utils import formatdate
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# A prefetch names up to a million tokens.
MAX_BODY_BYTES = 10 << 20


class Boundary:
    """ASGI middleware around a whole application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; a body of more than ``MAX_BODY_BYTES`` becomes a 413."""
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
            await send(message)

        await self._app(scope, receive_bounded, send_dated)
