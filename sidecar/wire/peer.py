"""One connection: bytes from it are messages, messages to it are bytes, both bounded."""

import select
import socket
from collections.abc import Sequence

from sidecar.wire.zmtp import GREETING, Decoder, encode

_READ_BYTES = 64 << 10
_LARGEST_READ_BYTES = 1 << 20  # within a large frame
# A peer with more than this to read is not listened to until it has read it.
_UNREAD_BYTES = 1 << 20


class Gone(Exception):
    """The connection has ended."""


class Peer:
    """A client's connection under an `identity` that no other has, before or after.

    `spent` is the server's time that its requests have taken, in seconds, for the order in which
    peers are served. `since` is when it began to hold memory.
    """

    __slots__ = (
        *("_outgoing", "accounted", "decoder", "events", "identity", "is_deaf", "since"),
        *("socket", "spent"),
    )

    def __init__(self, connection: socket.socket, identity: bytes, decoder: Decoder) -> None:
        self.socket = connection
        self.identity = identity
        self.decoder = decoder
        self.spent = 0.0
        self.since = 0.0
        self.accounted = 0  # of `held`, what the router has added up
        self.is_deaf = False
        self.events = 0  # of the connection, what the router waits for
        self._outgoing = bytearray(GREETING)

    @property
    def held(self) -> int:
        """Bytes in memory: a message that is not complete, and answers that it does not read."""
        return self.decoder.held + len(self._outgoing)

    @property
    def is_open(self) -> bool:
        """Whether its end is open, as far as the kernel knows now."""
        hang_up = select.poll()
        hang_up.register(self.socket, select.POLLRDHUP)
        return not (self.is_deaf or hang_up.poll(0))

    @property
    def has_unsent(self) -> bool:
        return bool(self._outgoing)

    @property
    def may_ask(self) -> bool:
        """Whether it reads its answers."""
        return len(self._outgoing) < _UNREAD_BYTES

    def read(self) -> bool:
        """Take in a piece of what has arrived; False if nothing has. Raises Gone."""
        size = min(max(_READ_BYTES, self.decoder.missing), _LARGEST_READ_BYTES)
        try:
            data = self.socket.recv(size)
        except BlockingIOError:
            return False
        except OSError:
            raise Gone from None
        if not data:
            raise Gone
        self.decoder.feed(data)
        return True

    def send(self, frames: Sequence[bytes]) -> None:
        """Send a message, as soon as the peer takes it."""
        self._outgoing += encode(frames)
        self.flush()

    def flush(self) -> None:
        """Send what the peer takes now. If its end is closed it is deaf from now on.

        What it has said before it closed is still to be read.
        """
        if self.decoder.answers:
            self._outgoing += self.decoder.answers
            self.decoder.answers.clear()
        try:
            while self._outgoing:
                del self._outgoing[: self.socket.send(self._outgoing)]
        except BlockingIOError:
            pass
        except OSError:
            self.is_deaf = True
        if self.is_deaf:
            self._outgoing.clear()
