"""Requests that are answered by one value after the other (section 1.5 of the protocol notes).

An answer goes out for each credit. A client has one at first, gives one more with each `ack`, and
ends the stream by `cancel`. So a slow client has one answer on its way, and no queue.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

from sidecar.flow import Outcome, Signal, first

ACK: Final = b"ack"
CANCEL: Final = b"cancel"
_MOST_OF_A_CLIENT = 4


class Stream:
    """One of them. `ended` is set when its client does not want it any more, or is gone."""

    def __init__(self, push: Callable[[Any], None]) -> None:
        self.ended: Outcome[None] = Outcome()
        self._push = push
        self._credits = 1
        self._acked = Signal()

    async def credit(self) -> bool:
        """Wait until a value may be sent; False if the stream has ended before."""
        while not (self._credits or self.ended.done):
            await first(self._acked.next(), self.ended)
        return not self.ended.done

    def send(self, value: Any) -> None:
        """Raises RuntimeError without a credit."""
        if not self._credits:
            raise RuntimeError("a value without a credit")
        self._credits -= 1
        self._push(value)

    def ack(self) -> None:
        """The client has taken a value."""
        self._credits = 1  # acknowledged in advance counts for nothing
        self._acked.fire()

    def end(self) -> None:
        """Idempotent."""
        if not self.ended.done:
            self.ended.set(None)


class Streams:
    """All that are open, by connection and uid."""

    def __init__(self) -> None:
        self._open: defaultdict[bytes, dict[bytes, Stream]] = defaultdict(dict)

    def open(self, client: bytes, uid: bytes, push: Callable[[Any], None]) -> Stream | None:
        """None where the client has too many."""
        streams = self._open[client]
        if len(streams) >= _MOST_OF_A_CLIENT or uid in streams:
            return None
        stream = streams[uid] = Stream(push)
        return stream

    def control(self, client: bytes, uid: bytes, words: list[bytes]) -> None:
        """What the client says of one; of one that is not open it means nothing."""
        stream = self._open[client].get(uid) if client in self._open else None
        if stream is not None and words == [ACK]:
            stream.ack()
        elif stream is not None and words == [CANCEL]:
            stream.end()

    def close(self, client: bytes, uid: bytes) -> None:
        """It has been answered for good."""
        streams = self._open.get(client, {})
        streams.pop(uid, None)
        if not streams:
            self._open.pop(client, None)

    def gone(self, client: bytes) -> None:
        """The connection has ended, and its streams with it."""
        for stream in self._open.pop(client, {}).values():
            stream.end()
