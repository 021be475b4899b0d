"""KV events over a PUB socket, as vLLM's own publisher sends them, and a ROUTER that replays them.

Frames: topic, number as u64 big endian, msgpack of [seconds since the epoch, [event, ...], nil]
(vllm/distributed/kv_events.py; events are maps with a `type` since vLLM 0.24). A replay is asked
for by a first number, and answered by one message a batch and a last one numbered -1. libzmq serves
these sockets rather than our own router: it fans out, filters by topic and drops for those who do
not read.
"""

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import zmq

from sidecar.outbox import Outbox
from sidecar.wire.readers import Readers

log = logging.getLogger(__name__)

_WAITING = 256  # batches, until they are encoded
_UNREAD = 64  # batches of one reader; then it misses some, and sees that by their numbers
_REPLAYED = 1000
_REPLAYED_BYTES = 16 << 20
_POLL_SECONDS = 0.1
_PAUSE_SECONDS = 0.001
_REPLAY_SECONDS = 5.0
_MAX_REQUEST_BYTES = 1024
# A machine that is gone is noticed within a minute.
_KEEPALIVE = {
    zmq.TCP_KEEPALIVE: 1,
    zmq.TCP_KEEPALIVE_IDLE: 30,
    zmq.TCP_KEEPALIVE_INTVL: 10,
    zmq.TCP_KEEPALIVE_CNT: 3,
}


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True):
    """One chunk can be loaded from `medium`."""

    block_hashes: Sequence[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str
    lora_name: str | None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True):
    """These cannot be loaded from `medium` any more."""

    block_hashes: Sequence[bytes]
    medium: str


BlockEvent = BlockStored | BlockRemoved
Make = Callable[[], list[BlockEvent]]
Batch = tuple[int, bytes, bytes]
"""Number, topic, payload."""


class _Replay:
    """An answer on its way to `client`: as fast as it reads, and not for ever."""

    def __init__(self, client: bytes, batches: Sequence[Batch]) -> None:
        self.count = len(batches)
        self._client = client
        self._left = deque([*batches, (-1, b"", b"")])
        self._deadline = time.monotonic() + _REPLAY_SECONDS

    def go_on(self, socket: "zmq.Socket[bytes]") -> bool:
        """Send what fits; whether something is left."""
        while self._left and time.monotonic() < self._deadline:
            number, topic, payload = self._left[0]
            encoded = number.to_bytes(8, "big", signed=True)
            try:
                socket.send_multipart([self._client, b"", topic, encoded, payload], zmq.DONTWAIT)
            except zmq.Again:
                return True
            except zmq.ZMQError:
                return False  # gone
            self._left.popleft()
        return False


class Publisher:
    """Binds the sockets. `publish` on one thread; the rest happens on the publisher's own.

    `on_replayed(count)` is told how many batches were asked for once more.
    """

    def __init__(self, url: str, replay_url: str, on_replayed: Callable[[int], None]) -> None:
        """Raises OSError for an address that cannot be listened on."""
        self._on_replayed = on_replayed
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._readers: list[Readers] = []
        self._pub = self._bind(zmq.PUB, url)
        self._router = self._bind(zmq.ROUTER, replay_url) if replay_url else None
        self._replay: _Replay | None = None
        self._number = 0
        self._sent: deque[Batch] = deque()
        self._sent_bytes = 0
        self._waiting: Outbox[tuple[int, str, Make]] = Outbox("kv-events", _WAITING, self._run)
        self._waiting.start()

    def publish(self, topic: str, make: Make) -> bool:
        """Publish the batch that `make` makes on the publisher's thread; False: not now."""
        if not self._waiting.put((self._number, topic, make)):
            return False
        self._number += 1
        return True

    def skip(self) -> None:
        """Readers are to see that something is missing here."""
        self._number += 1

    def close(self) -> None:
        """What waits is sent within two seconds."""
        if self._waiting.close():
            self._destroy()

    def _destroy(self) -> None:
        for each in self._readers:
            each.close()
        self._context.destroy(linger=0)

    def _bind(self, kind: int, url: str) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set_hwm(_UNREAD)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_REQUEST_BYTES)
        socket.setsockopt(zmq.IPV6, int("[" in url))
        if kind == zmq.ROUTER:
            socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # to be told of a reader that does not read
        for option, value in _KEEPALIVE.items():
            socket.setsockopt(option, value)
        self._readers.append(Readers(socket))
        try:
            socket.bind(url)
        except zmq.ZMQError as error:
            self._destroy()
            raise OSError(error.errno, f"{url}: {error.strerror}") from None
        return socket

    def _run(self) -> None:
        while True:
            try:
                seconds = _POLL_SECONDS if self._replay is None else _PAUSE_SECONDS
                batch = self._waiting.take(seconds)
            except queue.Empty:
                pass
            else:
                if batch is None:
                    return
                self._send(*batch)
            if self._router is not None:
                self._serve_replays(self._router)

    def _send(self, number: int, topic: str, make: Make) -> None:
        payload = msgspec.msgpack.encode((time.time(), make(), None))
        name = topic.encode("utf-8", "replace")
        self._pub.send_multipart([name, number.to_bytes(8, "big"), payload])
        self._sent.append((number, name, payload))
        self._sent_bytes += len(payload)
        while len(self._sent) > _REPLAYED or self._sent_bytes > _REPLAYED_BYTES:
            self._sent_bytes -= len(self._sent.popleft()[2])

    def _serve_replays(self, router: "zmq.Socket[bytes]") -> None:
        """One at a time: what is asked for meanwhile waits in the socket."""
        if self._replay is None and router.poll(0):
            self._replay = self._begin_replay(router.recv_multipart())
        if self._replay is not None and not self._replay.go_on(router):
            self._replay = None

    def _begin_replay(self, request: list[bytes]) -> _Replay | None:
        if len(request) != 3 or len(request[2]) != 8:
            log.debug("not a request for a replay: %d frames", len(request))
            return None
        begin = int.from_bytes(request[2], "big")
        replay = _Replay(request[0], [batch for batch in self._sent if batch[0] >= begin])
        self._on_replayed(replay.count)
        return replay
