"""Operations on the wire: decode, dispatch, answer.

Frames of a request: `[uid, op, payload...]`; of its answer: `[uid, op]` and at most one value
frame, uid and op echoed byte for byte (section 1 of the protocol notes). Whatever a peer
sends, it gets the operation's negative at worst, and nobody else notices.
"""

import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final

import msgspec

from sidecar.wire.generations import Generation
from sidecar.wire.listener import Listener
from sidecar.wire.messages import BadPayload
from sidecar.wire.operations import Operation
from sidecar.wire.peers import Peers, Reading, Unreadable
from sidecar.wire.router import Router
from sidecar.wire.streams import Stream, Streams
from sidecar.wire.zmtp import Message

log = logging.getLogger(__name__)

DEFERRED: Final = object()
_MAX_FRAMES = 2 + 8 + 1  # uid, op; payloads; one too many
_LINGER_SECONDS = 0.5
_TRANSFERS = ("store", "retrieve")
_EVENT_AT = 3  # among their payloads
# What a worker on a GPU sends: a CUDA event, or a word in its memory (isolated_ipc).
_GPU_EVENT_BYTES = (64, 81)


class Refused(Exception):
    """A handler's "no": answered with the operation's negative, counted under `reason`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


class Request:
    """One request under way. Exactly one answer goes out, whoever gives it first.

    One that is dropped without an answer, because a callback that had to give it failed, is
    refused when its last reference goes.

    `generation` is what its client speaks. `done_event` stands in the answer of a transfer for an
    event that has happened; None while no such event is known that the client could import.
    """

    __slots__ = (
        *("_endpoint", "_op_frame", "_stream", "_uid"),
        *("answered", "client", "done_event", "generation", "on_end", "operation", "received"),
    )

    def __init__(
        self, endpoint: "Endpoint", client: bytes, uid: bytes, op_frame: bytes, reading: Reading
    ) -> None:
        self._endpoint = endpoint
        self._uid = uid
        self._op_frame = op_frame
        self._stream: Stream | None = None
        self.client = client
        self.operation: Operation = reading.operation
        self.generation: Generation = reading.generation
        self.done_event = _done_event(reading)
        self.received = time.monotonic()
        self.answered = False
        # Told why the request was refused, "" if it was not.
        self.on_end: Callable[[str], None] | None = None

    def reply(self, value: Any) -> bool:
        """Answer with `value`; None means a reply without a value frame.

        False if the client is gone, or has been answered before.
        """
        return self._send(None if value is None else msgspec.msgpack.encode(value))

    def stream(self) -> Stream:
        """Answer with any number of values from now on; the answer proper, without one, ends them.

        Raises Refused where the client has too many streams.
        """
        stream = self._endpoint.streams.open(self.client, self._uid, self._push)
        if stream is None:
            raise Refused("too_many_streams")
        self._endpoint.on_answered(self.operation.name, time.monotonic() - self.received)
        self._stream = stream
        return stream

    def refuse(self, reason: str, detail: str = "") -> None:
        """Count it and answer with the negative, at once or when that does no harm any more."""
        self._endpoint.on_refused(self.operation.name, reason, detail)
        if self._refusal_does_harm():
            self._endpoint.withhold(self, reason)
        else:
            self.send_negative(reason)

    def send_negative(self, reason: str) -> None:
        """The negative, whatever the client makes of it."""
        if self.operation.name in _TRANSFERS:
            self._send(msgspec.msgpack.encode((self.done_event or b"", False)), reason)
        else:
            self._send(self.operation.negative, reason)

    def _refusal_does_harm(self) -> bool:
        """Whether its client uses what was not loaded, or cannot do without an event to import."""
        is_transfer = self.operation.name in _TRANSFERS
        cannot_tell = is_transfer and self.done_event is None
        return cannot_tell or self.generation.uses_what_failed(self.operation)

    def worker_registered(self, instance_id: int) -> None:
        """This worker is registered over the connection: what it speaks is remembered of both."""
        self._endpoint.peers.registered(self.client, instance_id)

    def is_connected(self, client: bytes | None = None) -> bool:
        """Whether who asked still has its connection: without it, it gives up its requests.

        Or whether another `client` has its own.
        """
        return self._endpoint.is_connected(self.client if client is None else client)

    def __del__(self) -> None:
        if not self.answered:
            self._endpoint.post(partial(self.refuse, "internal_error", "dropped"))

    def _push(self, value: Any) -> None:
        frames = [self._uid, self._op_frame, msgspec.msgpack.encode(value)]
        self._endpoint.send(self.client, frames)

    def _send(self, value: bytes | None, refusal: str = "") -> bool:
        if self.answered:
            return False
        self.answered = True
        frames = [self._uid, self._op_frame]
        sent = self._endpoint.send(self.client, frames if value is None else [*frames, value])
        if self._stream is not None:
            self._endpoint.streams.close(self.client, self._uid)
        else:
            self._endpoint.on_answered(self.operation.name, time.monotonic() - self.received)
        if self.on_end is not None:
            self.on_end(refusal)
        return sent


def _done_event(reading: Reading) -> bytes | None:
    """What a request is answered with in place of an event, as far as the request itself tells.

    A client without a GPU takes whatever it has sent itself.
    """
    if reading.generation.takes_empty_event or reading.operation.name not in _TRANSFERS:
        return b""
    event = reading.payloads[_EVENT_AT] if len(reading.payloads) > _EVENT_AT else b""
    return event if event and len(event) not in _GPU_EVENT_BYTES else None


class Endpoint:
    """The operations that are served to all who connect.

    `handlers` maps operation names to `handler(request, *payloads)`, which returns the value
    to reply, returns DEFERRED and replies itself, or raises Refused or BadPayload. What takes
    longer is a coroutine that does the same; `start` runs it.
    `on_refused(operation, reason, detail)` and `on_answered(operation, seconds)` observe.
    `withhold(request, reason)` keeps a request whose client must not be told "no" yet.
    `post` runs a callback on the loop thread soon.
    """

    def __init__(
        self,
        peers: Peers,
        handlers: dict[str, Callable[..., Any]],
        max_message_bytes: int,
        on_refused: Callable[[str, str, str], None],
        on_answered: Callable[[str, float], None],
        withhold: Callable[[Request, str], None],
        post: Callable[[Callable[[], None]], None],
        start: Callable[[Coroutine[Any, None, None]], object],
    ) -> None:
        self.peers = peers
        self._handlers = handlers
        self.withhold = withhold
        self.on_refused = on_refused
        self.on_answered = on_answered
        self.post = post
        self._start = start
        self._only: dict[Listener, Generation | None] = {}
        self.streams = Streams()
        self._router = Router(
            max_message_bytes, _MAX_FRAMES, self._connected, self._gone, self._serve,
            partial(on_refused, "connection"), post,
        )  # fmt: skip
        self.fileno = self._router.fileno
        self.on_readable = self._router.on_readable
        self.send = self._router.send
        self.is_connected = self._router.is_connected
        self.tick = self._router.tick

    def bind(self, url: str, ipc_mode: int, only: Generation | None = None) -> None:
        """Listen on `url`, on one more with each call. Raises OSError if that cannot be.

        `ipc_mode` is the permission of a Unix socket. `only`: all clients there speak this.
        """
        listener = Listener(url, ipc_mode)
        self._only[listener] = only
        self._router.listen(listener)

    def close(self) -> None:
        """Stop listening; replies already queued get half a second to leave."""
        self._router.close(_LINGER_SECONDS)

    def _connected(self, client: bytes, listener: Listener) -> None:
        self.peers.connected(client, self._only[listener])

    def _gone(self, client: bytes) -> None:
        self.peers.gone(client)
        self.streams.gone(client)

    def _serve(self, client: bytes, message: Message) -> None:
        if len(message.frames) < 2:
            self.on_refused("unknown", "malformed", f"{len(message.frames)} frames")
            return
        uid, op_frame, *payloads = message.frames
        if not op_frame:
            self.streams.control(client, uid, payloads)
            return
        if message.oversized:
            error = Unreadable("too_large", "", self.peers.unread(client, op_frame))
            self._refuse(client, uid, op_frame, error)
            return
        try:
            reading = self.peers.read(client, uid, op_frame, payloads)
        except Unreadable as error:
            self._refuse(client, uid, op_frame, error)
        else:
            self._dispatch(Request(self, client, uid, op_frame, reading), reading.payloads)

    def _refuse(self, client: bytes, uid: bytes, op_frame: bytes, error: Unreadable) -> None:
        if error.reading is None:
            self.on_refused("unknown", error.reason, str(error))
            self.send(client, [uid, op_frame])
        else:
            Request(self, client, uid, op_frame, error.reading).refuse(error.reason, str(error))

    def _dispatch(self, request: Request, payloads: list[Any]) -> None:
        handler = self._handlers.get(request.operation.name)
        if handler is None:
            request.refuse("not_served")
            return
        try:
            value = handler(request, *payloads)
        except Exception as error:
            _refuse(request, error)
        else:
            if isinstance(value, Coroutine):
                self._start(self._answer_later(request, value))
            elif value is not DEFERRED:
                request.reply(value)

    async def _answer_later(self, request: Request, handler: Coroutine[Any, None, Any]) -> None:
        try:
            value = await handler
        except Exception as error:
            _refuse(request, error)
        else:
            if value is not DEFERRED:
                request.reply(value)


def _refuse(request: Request, error: Exception) -> None:
    """Answer with the negative, for what the handler raised."""
    if isinstance(error, BadPayload):
        request.refuse("bad_payload", str(error))
    elif isinstance(error, Refused):
        request.refuse(error.reason, str(error))
    else:
        log.error("%s failed", request.operation.name, exc_info=error)
        request.refuse("internal_error")
