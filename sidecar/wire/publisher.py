"""KV events over a PUB socket, as vLLM's own publisher sends them, and a ROUTER that replays them.

Frames: topic, number as u64 big endian, msgpack of [seconds since the epoch, [event, ...], nil]
(vllm/distributed/kv_events.py; events are maps with a `type` since vLLM 0.24). A replay is asked
for by a first number, and answered by one message a batch and a last one numbered -1. libzmq serves
these sockets rather than our own router: it fans out, filters by topic and drops for those who do
not read.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import zmq

log = logging.getLogger(__name__)

_END: Final = (-1).to_bytes(8, "big", signed=True)
_WAITING = 256  # batches, until they are encoded
_UNREAD = 256  # of one reader; then it misses some, and sees that by their numbers
_REPLAYED = 1000
_REPLAYED_BYTES = 16 << 20
_POLL_SECONDS = 0.1
_STOP_SECONDS = 2.0
_MAX_REQUEST_BYTES = 1024


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


KvEvent = BlockStored | BlockRemoved


class Publisher:
    """Binds the sockets. `publish` on one thread; the rest happens on the publisher's own.

    `on_replayed(count)` is told how many batches were sent once more.
    """

    def __init__(self, url: str, replay_url: str, on_replayed: Callable[[int], None]) -> None:
        """Raises OSError for an address that cannot be listened on."""
        self._on_replayed = on_replayed
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._pub = self._bind(zmq.PUB, url, _UNREAD)
        self._replay = self._bind(zmq.ROUTER, replay_url, 2 * _REPLAYED) if replay_url else None
        self._number = 0
        self._sent: deque[tuple[int, bytes, bytes]] = deque()  # number, topic, payload
        self._sent_bytes = 0
        self._waiting: queue.Queue[tuple[int, str, Any] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="kv-events", daemon=True)
        self._thread.start()

    def publish(self, topic: str, make: Callable[[], list[KvEvent]]) -> bool:
        """Publish a batch, which `make` makes on the publisher's thread; False if it is dropped.

        One that is dropped leaves its number out, so that readers see that they miss something.
        """
        number, self._number = self._number, self._number + 1
        try:
            self._waiting.put_nowait((number, topic, make))
        except queue.Full:
            return False
        return True

    def skip(self) -> None:
        """Readers are to see that something is missing here."""
        self._number += 1

    def close(self) -> None:
        """What waits is sent within two seconds."""
        try:
            self._waiting.put(None, timeout=_STOP_SECONDS)
        except queue.Full:
            return
        self._thread.join(_STOP_SECONDS)
        if not self._thread.is_alive():
            self._context.destroy(linger=0)

    def _bind(self, kind: int, url: str, unread: int) -> "zmq.Socket[bytes]":
        socket = self._context.socket(kind)
        socket.set_hwm(unread)
        socket.setsockopt(zmq.MAXMSGSIZE, _MAX_REQUEST_BYTES)
        socket.setsockopt(zmq.IPV6, int("[" in url))
        try:
            socket.bind(url)
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(error.errno, f"{url}: {error.strerror}") from None
        return socket

    def _run(self) -> None:
        while True:
            try:
                batch = self._waiting.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                pass
            else:
                if batch is None:
                    return
                self._send(*batch)
            if self._replay is not None and self._replay.poll(0):
                self._answer(self._replay, self._replay.recv_multipart())

    def _send(self, number: int, topic: str, make: Callable[[], list[KvEvent]]) -> None:
        payload = msgspec.msgpack.encode((time.time(), make(), None))
        name = topic.encode("utf-8", "replace")
        self._pub.send_multipart([name, number.to_bytes(8, "big"), payload])
        self._sent.append((number, name, payload))
        self._sent_bytes += len(payload)
        while len(self._sent) > _REPLAYED or self._sent_bytes > _REPLAYED_BYTES:
            self._sent_bytes -= len(self._sent.popleft()[2])

    def _answer(self, socket: "zmq.Socket[bytes]", request: list[bytes]) -> None:
        """A reader that does not read its answer loses the end of it, and nobody waits for it."""
        if len(request) != 3 or len(request[2]) != 8:
            log.debug("not a request for a replay: %d frames", len(request))
            return
        client, begins = request[0], int.from_bytes(request[2], "big")
        found = [batch for batch in self._sent if batch[0] >= begins]
        for number, topic, payload in found:
            socket.send_multipart([client, b"", topic, number.to_bytes(8, "big"), payload])
        socket.send_multipart([client, b"", b"", _END, b""])
        self._on_replayed(len(found))
