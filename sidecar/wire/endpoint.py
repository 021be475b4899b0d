"""The ROUTER socket: receive, decode, dispatch, answer.

Frames in: `[identity, uid, op, payload...]`; out: `[identity, uid, op]` and at most one value
frame, uid and op echoed byte for byte (section 1 of the protocol notes). Whatever a peer
sends, it gets the operation's negative at worst, and nobody else notices.
"""

import errno
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import zmq

from sidecar.wire.messages import BadPayload
from sidecar.wire.operations import Operation, OperationTable

log = logging.getLogger(__name__)

DEFERRED: Final = object()
_FRAMES_A_TURN = 256
_MAX_FRAMES = 3 + 8 + 1  # identity, uid, op; payloads; one too many
_SEND_QUEUE = 10_000
# A uid that no client ever counts up to: its reply is ignored, but sending it tells whether
# the peer is still connected.
_PROBE = [msgspec.msgpack.encode(2**63 - 1), msgspec.msgpack.encode("noop")]


class Refused(Exception):
    """A handler's "no": answered with the operation's negative, counted under `reason`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.reason = reason


class Request:
    """One request under way. Exactly one answer goes out, whoever gives it first."""

    __slots__ = (
        *("_endpoint", "_op_frame", "_uid"),
        *("answered", "client", "on_end", "operation", "received"),
    )

    def __init__(
        self, endpoint: "Endpoint", client: bytes, uid: bytes, op_frame: bytes, operation: Operation
    ) -> None:
        self._endpoint = endpoint
        self._uid = uid
        self._op_frame = op_frame
        self.client = client
        self.operation = operation
        self.received = time.monotonic()
        self.answered = False
        # Told why the request was refused, "" if it was not.
        self.on_end: Callable[[str], None] | None = None

    def reply(self, value: Any) -> bool:
        """Answer with `value`; None means a reply without a value frame.

        False if the client is gone, or has been answered before.
        """
        return self._send(None if value is None else msgspec.msgpack.encode(value))

    def refuse(self, reason: str, detail: str = "") -> None:
        """Answer with the negative and count it."""
        self._endpoint.on_refused(self.operation.name, reason, detail)
        self._send(self.operation.negative, reason)

    def is_connected(self) -> bool:
        """Whether who asked still has its connection: without it, it gives up its requests."""
        return self._endpoint.is_connected(self.client)

    def _send(self, value: bytes | None, refusal: str = "") -> bool:
        if self.answered:
            return False
        self.answered = True
        frames = [self.client, self._uid, self._op_frame]
        sent = self._endpoint.send(frames if value is None else [*frames, value])
        self._endpoint.on_answered(self.operation.name, time.monotonic() - self.received)
        if self.on_end is not None:
            self.on_end(refusal)
        return sent


class Endpoint:
    """One listening ROUTER socket and the operations that are served on it.

    `handlers` maps operation names to `handler(request, *payloads)`, which returns the value
    to reply, returns DEFERRED and replies later, or raises Refused or BadPayload.
    `on_refused(operation, reason, detail)` and `on_answered(operation, seconds)` observe.
    """

    def __init__(
        self,
        table: OperationTable,
        handlers: dict[str, Callable[..., Any]],
        max_message_bytes: int,
        on_refused: Callable[[str, str, str], None],
        on_answered: Callable[[str, float], None],
    ) -> None:
        self._table = table
        self._handlers = handlers
        self.on_refused = on_refused
        self.on_answered = on_answered
        self._path: Path | None = None  # of the Unix socket, if it is one
        self._frames: list[bytes] = []  # of the message that is being received
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.LINGER, 500)
        self.socket.setsockopt(zmq.SNDHWM, _SEND_QUEUE)
        # The only bound that holds before the bytes are in memory; libzmq drops the peer.
        self.socket.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)
        self.socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        self.socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
        self.socket.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 10)
        self.socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)

    def bind(self, url: str, ipc_mode: int) -> None:
        """Listen on `url`. Raises zmq.ZMQError or OSError if that cannot be; it is closed then.

        `ipc_mode` is the permission of a Unix socket; it is narrow from its first moment.
        """
        try:
            if url.startswith("ipc://"):
                self._bind_unix(url, ipc_mode)
            else:
                self.socket.bind(url)
        except (OSError, zmq.ZMQError):
            self.close()
            raise

    def _bind_unix(self, url: str, mode: int) -> None:
        path = Path(url.removeprefix("ipc://"))
        _refuse_live_socket(path)
        self._path = path
        old_mask = os.umask(0o777 & ~mode)
        try:
            self.socket.bind(url)
        finally:
            os.umask(old_mask)

    def on_readable(self) -> None:
        """Serve what has arrived, a bounded number of frames.

        A message may have millions of them: only as many are kept as an operation can have,
        and one more to tell that there were too many.
        """
        for _ in range(_FRAMES_A_TURN):
            try:
                frame = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(self._frames) < _MAX_FRAMES:
                self._frames.append(frame)
            if not self.socket.getsockopt(zmq.RCVMORE):
                frames, self._frames = self._frames, []
                self._serve(frames)

    def send(self, frames: list[bytes]) -> bool:
        """Send to the peer named by the first frame; False if it is gone or does not read."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            return False
        return True

    def is_connected(self, client: bytes) -> bool:
        """Whether the peer with this identity still has its connection."""
        try:
            self.socket.send_multipart([client, *_PROBE], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            return error.errno != zmq.EHOSTUNREACH
        return True

    def close(self) -> None:
        """Stop listening; replies already queued get half a second to leave."""
        self.socket.close()
        self._context.term()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _serve(self, frames: list[bytes]) -> None:
        if len(frames) < 3:
            self.on_refused("unknown", "malformed", f"{len(frames)} frames")
            return
        client, uid, op_frame, *payloads = frames
        if not op_frame:
            return  # stream control (ack, cancel); we open no streams
        operation = self._table.find(op_frame)
        if operation is None:
            self.on_refused("unknown", "unknown_operation", repr(op_frame[:32]))
            self.send([client, uid, op_frame])
            return
        self._dispatch(Request(self, client, uid, op_frame, operation), payloads)

    def _dispatch(self, request: Request, payloads: list[bytes]) -> None:
        handler = self._handlers.get(request.operation.name)
        if handler is None:
            request.refuse("not_served")
            return
        try:
            value = handler(request, *request.operation.decode(payloads))
        except BadPayload as error:
            request.refuse("bad_payload", str(error))
        except Refused as refusal:
            request.refuse(refusal.reason, str(refusal))
        except Exception:
            log.exception("%s failed", request.operation.name)
            request.refuse("internal_error")
        else:
            if value is not DEFERRED:
                request.reply(value)


def _refuse_live_socket(path: Path) -> None:
    """libzmq unlinks whatever is at `path`; somebody's live socket must not be lost so."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE), str(path))
