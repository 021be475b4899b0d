"""A client of the LMCache MP protocol, as small as it can be: one request at a time.

Operations travel by name, which every server of this generation understands.
"""

import time
from itertools import count
from typing import Any

import msgspec
import zmq

_encode = msgspec.msgpack.encode


class LiveFailed(Exception):
    """The server did not answer, or not as it should; the text says what."""


class Client:
    """Connected to `url`; no wait goes beyond `seconds` after now, all calls together."""

    def __init__(self, url: str, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._seconds = seconds
        self._uids = count()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.ipv6 = "[" in url  # libzmq resolves to either family, not to both
        self._socket.connect(url)

    def close(self) -> None:
        self._context.destroy(linger=0)

    def call(self, operation: str, *payloads: Any) -> Any:
        """What the server answers; None for an answer without a value. Raises LiveFailed."""
        request = [_encode(next(self._uids)), _encode(operation)]
        self._socket.send_multipart([*request, *map(_encode, payloads)])
        while self._socket.poll(self._left()):
            reply = self._socket.recv_multipart()
            if reply[:2] == request:
                return self._value(operation, reply[2:])
        raise LiveFailed(f"{operation} was not answered within {self._seconds:g} s")

    def wait_for(self, operation: str, *payloads: Any) -> Any:
        """The first answer with a value."""
        while (answer := self.call(operation, *payloads)) is None:
            if not self._left():
                raise LiveFailed(f"{operation} returned nothing within {self._seconds:g} s")
            time.sleep(0.01)
        return answer

    def _left(self) -> int:
        """Milliseconds."""
        return max(0, int(1000 * (self._deadline - time.monotonic())))

    def _value(self, operation: str, frames: list[bytes]) -> Any:
        if not frames:
            return None
        try:
            return msgspec.msgpack.decode(frames[0])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise LiveFailed(f"the answer to {operation} is not msgpack") from None
