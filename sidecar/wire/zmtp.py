"""ZMTP 3, the transport of ZeroMQ, as far as a ROUTER needs it: bytes in, messages out.

Nothing here knows sockets. libzmq is not used to listen, because it cannot be bounded: frames
with MORE and no end are kept until memory is (its limits are per frame and per whole message),
and so is what a peer does not read. Source: https://rfc.zeromq.org/spec/37/, mechanism NULL.
"""

import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

_MORE, _LONG, _COMMAND = 1, 2, 4
_LONG_SIZE = struct.Struct(">BQ")
_GREETING_BYTES = 64
_VERSION_AT, _MECHANISM = 10, slice(12, 32)
_OLDEST_VERSION = 3
# Commands are READY with a few properties, and heartbeats.
_MAX_COMMAND_BYTES = 4096
_MAX_PING_CONTEXT = 16
_PEERS = (b"DEALER", b"REQ", b"ROUTER")
# The frames that say which request this is, uid and op, and come back with the answer.
_NAMED = 2
_MAX_NAME_BYTES = 128 << 10

GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


class ProtocolError(Exception):
    """The peer does not speak ZMTP 3 as a client of ours does; the text says what is wrong."""


class Message(NamedTuple):
    """One message. `oversized`: only its first two frames were kept, the rest was too much."""

    frames: list[bytes]
    oversized: bool


def encode(frames: Sequence[bytes]) -> bytes:
    """One message as it travels."""
    parts = []
    last = len(frames) - 1
    for number, frame in enumerate(frames):
        more = number < last
        size = len(frame)
        parts.append(bytes((more, size)) if size < 256 else _LONG_SIZE.pack(more | _LONG, size))
        parts.append(frame)
    return b"".join(parts)


def _command(name: bytes, data: bytes) -> bytes:
    body = bytes((len(name),)) + name + data
    return bytes((_COMMAND, len(body))) + body


_READY = _command(b"READY", b"\x0bSocket-Type\x00\x00\x00\x06ROUTER")


class Decoder:
    """What one peer sends: `feed` it, take `next_message` until there is none.

    Of a message at most `max_bytes` and `max_frames` frames are kept; what is beyond is thrown
    away as it comes, so that the message can still be answered. `answers` holds what the
    protocol itself has to say to the peer; the caller sends it and clears it.
    """

    __slots__ = (
        *("_buffer", "_ended", "_frames", "_greeted", "_kept", "_max_bytes", "_max_frames"),
        *("_oversized", "_skip", "answers", "ready"),
    )

    def __init__(self, max_bytes: int, max_frames: int) -> None:
        self._max_bytes = max_bytes
        self._max_frames = max_frames
        self._buffer = bytearray()
        self._frames: list[bytes] = []  # of the message that is coming in
        self._kept = 0  # bytes of these
        self._ended = False  # its last frame has begun
        self._oversized = False
        self._skip = 0  # bytes still to come of a frame that is not kept
        self._greeted = False
        self.ready = False
        self.answers = bytearray()

    @property
    def held(self) -> int:
        """Bytes in memory that no message has been made of yet."""
        return len(self._buffer) + self._kept

    @property
    def missing(self) -> int:
        """Bytes without which there is no further frame; 0 if that is not known."""
        return self._skip or max(0, self._frame_end() - len(self._buffer))

    def feed(self, data: bytes) -> None:
        """Take in what the peer sent."""
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        self._buffer += data[skipped:] if skipped else data

    def next_message(self) -> Message | None:
        """The next whole message, None if more has to come. Raises ProtocolError."""
        if not self._greeted and not self._greet():
            return None
        while not self._skip:
            if self._ended:
                message = Message(self._frames, self._oversized)
                self._frames, self._kept, self._ended, self._oversized = [], 0, False, False
                return message
            if not self._take_frame():
                break
        return None

    def _take_frame(self) -> bool:
        """Take the frame at the start of the buffer out of it; False if it is not complete."""
        buffer, end = self._buffer, self._frame_end()
        if not end:
            return False
        flags, head = buffer[0], _LONG_SIZE.size if buffer[0] & _LONG else 2
        if flags & ~(_MORE | _LONG) or not self.ready:
            return self._take_command(flags, head, end)
        if len(self._frames) < _NAMED and end - head > _MAX_NAME_BYTES:
            raise ProtocolError("a request id or operation beyond the size limit")
        if self._oversized or len(self._frames) >= self._max_frames:
            self._throw_away(end)
        elif self._kept + end - head > self._max_bytes:
            self._cut_off()
            self._throw_away(end)
        elif end > len(buffer):
            return False
        else:
            self._frames.append(bytes(memoryview(buffer)[head:end]))
            self._kept += end - head
            del buffer[:end]
        self._ended = not flags & _MORE
        return True

    def _frame_end(self) -> int:
        """Where the frame at the start of the buffer ends; 0 if its header is not there yet."""
        buffer = self._buffer
        if not self._greeted or len(buffer) < 2:
            return 0
        if not buffer[0] & _LONG:
            return 2 + buffer[1]
        if len(buffer) < _LONG_SIZE.size:
            return 0
        return _LONG_SIZE.size + int.from_bytes(memoryview(buffer)[1 : _LONG_SIZE.size], "big")

    def _throw_away(self, end: int) -> None:
        """Drop the first frame, as much of it as is here, and the rest when it comes."""
        self._skip = max(0, end - len(self._buffer))
        del self._buffer[:end]

    def _cut_off(self) -> None:
        """The message is too large: keep what it can be answered with."""
        self._oversized = True
        del self._frames[_NAMED:]
        self._kept = sum(map(len, self._frames))

    def _greet(self) -> bool:
        """Whether the peer's greeting is complete. Raises ProtocolError if it is none of ours."""
        buffer = self._buffer
        if buffer and buffer[0] != GREETING[0]:
            raise ProtocolError("not ZMTP")
        if len(buffer) < _GREETING_BYTES:
            return False
        if buffer[9] != GREETING[9] or buffer[_VERSION_AT] < _OLDEST_VERSION:
            raise ProtocolError("not ZMTP 3")
        if buffer[_MECHANISM].rstrip(b"\0") != b"NULL":
            raise ProtocolError("a security mechanism that is not NULL")
        del buffer[:_GREETING_BYTES]
        self._greeted = True
        self.answers += _READY
        return True

    def _take_command(self, flags: int, head: int, end: int) -> bool:
        """Act on a command; False if it is not complete. Raises ProtocolError."""
        if flags & ~_LONG != _COMMAND:
            raise ProtocolError("no READY before the first message, or flags that mean nothing")
        if end - head > _MAX_COMMAND_BYTES:
            raise ProtocolError("a command beyond the size limit")
        if end > len(self._buffer):
            return False
        body = bytes(self._buffer[head:end])
        del self._buffer[:end]
        if not body or len(body) < 1 + body[0]:
            raise ProtocolError("a command without a name")
        name, data = body[1 : 1 + body[0]], body[1 + body[0] :]
        if not self.ready:
            _check_ready(name, data)
            self.ready = True
        elif name == b"PING":  # two bytes of time to live, then what PONG repeats
            self.answers += _command(b"PONG", data[2 : 2 + _MAX_PING_CONTEXT])
        return True


def _check_ready(name: bytes, data: bytes) -> None:
    """Raises ProtocolError unless this is READY of a socket that may talk to a ROUTER."""
    if name != b"READY":
        raise ProtocolError(f"{name[:16]!r} in place of READY")
    kind = _properties(data).get(b"socket-type")
    if kind not in _PEERS:
        raise ProtocolError(f"a socket of type {(kind or b'')[:16]!r}")


def _properties(data: bytes) -> dict[bytes, bytes]:
    """The metadata of READY: by lower-case name. Raises ProtocolError if it is malformed."""
    found = {}
    at = 0
    while at < len(data):
        name_end = at + 1 + data[at]
        value_at = name_end + 4
        value_end = value_at + int.from_bytes(data[name_end:value_at], "big")
        if value_at > len(data) or value_end > len(data):
            raise ProtocolError("READY with broken properties")
        found[data[at + 1 : name_end].lower()] = data[value_at:value_end]
        at = value_end
    return found
