"""The publisher's sockets, and readers that do not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from sidecar.wire import publisher as publisher_module
from sidecar.wire.publisher import BlockEvent, BlockStored, Publisher
from tests.support.server import wait_until

TOPIC = "kv@pod@model"
END = -1
# What one reader leaves unread (some 16 KiB a batch) is more than libzmq and the kernel hold.
UNREAD, TOKENS = 400, 5000


class Site:
    """A publisher, a reader with as little room as there can be, and one that asks for replays."""

    def __init__(self, folder: Path) -> None:
        events, replay = f"ipc://{folder}/events", f"ipc://{folder}/replay"
        self.replayed: list[int] = []
        self.publisher = Publisher(events, replay, self.replayed.append)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.sub = self.context.socket(zmq.SUB)
        self.sub.setsockopt(zmq.RCVHWM, 1)
        self.sub.connect(events)
        self.sub.subscribe("kv@")
        self.asker = self.context.socket(zmq.DEALER)
        self.asker.connect(replay)
        self.heard: dict[int, bytes] = {}
        self.count = 0

    def publish(self, tokens: int = 1) -> int:
        """One batch, which tells its number; where too many wait, when there is room."""
        number, self.count = self.count, self.count + 1
        wait_until(lambda: self.publisher.publish(TOPIC, batch(number, tokens)), "there is room")
        return number

    def listen(self) -> None:
        """A subscription takes a moment; what was sent before is not for it."""

        def heard() -> bool:
            self.publish()
            self.read()
            return bool(self.heard)

        wait_until(heard, "the subscription to count")

    def read(self) -> None:
        while self.sub.poll(0):
            _, number, payload = self.sub.recv_multipart()
            self.heard[int.from_bytes(number, "big")] = payload

    def replay(self, begin: int) -> dict[int, bytes]:
        self.asker.send_multipart([b"", begin.to_bytes(8, "big")])
        found: dict[int, bytes] = {}
        while True:
            assert self.asker.poll(30_000)
            _, _, encoded, payload = self.asker.recv_multipart()
            if (number := int.from_bytes(encoded, "big", signed=True)) == END:
                return found
            found[number] = payload

    def wait_sent(self, number: int) -> None:
        wait_until(lambda: number in self.replay(number), f"batch {number} to be sent")

    def close(self) -> None:
        self.publisher.close()
        self.context.destroy(linger=0)


def batch(number: int, tokens: int) -> Callable[[], list[BlockEvent]]:
    name, ids = number.to_bytes(32, "big"), [1000] * tokens
    return lambda: [BlockStored([name], None, ids, tokens, None, "CPU", None)]


def told(payload: bytes) -> int:
    """The number that a batch was made with."""
    [event] = msgspec.msgpack.decode(payload)[1]
    return int.from_bytes(event["block_hashes"][0], "big")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.close()


def test_a_reader_that_does_not_read_sees_what_it_missed_and_gets_it_again(site: Site) -> None:
    site.listen()
    first = site.publish(TOKENS)
    for _ in range(UNREAD):
        site.publish(TOKENS)
    last = site.count - 1
    site.wait_sent(last)

    def goes_on() -> bool:
        site.publish()
        site.read()
        return max(site.heard) > last

    wait_until(goes_on, "batches to arrive again")
    missed = set(range(first, last + 1)) - site.heard.keys()
    assert missed, "libzmq would keep what nobody reads without an end"
    again = site.replay(min(missed))
    assert missed <= again.keys()
    assert all(again[number] == site.heard[number] for number in again.keys() & site.heard.keys())
    assert all(told(payload) == number for number, payload in (site.heard | again).items())
    assert site.replayed[-1] == len(again)


def test_what_is_not_kept_any_more_is_not_replayed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its number or by its size; the reader sees that the first is not the one it asked for."""
    monkeypatch.setattr(publisher_module, "_REPLAYED", 10)
    for _ in range(25):
        last = site.publish()
    site.wait_sent(last)
    assert list(site.replay(3)) == list(range(last - 9, last + 1))

    monkeypatch.setattr(publisher_module, "_REPLAYED_BYTES", 50_000)
    for _ in range(10):
        last = site.publish(TOKENS)
    site.wait_sent(last)
    kept = site.replay(0)
    assert list(kept) == list(range(min(kept), last + 1))
    assert 0 < sum(map(len, kept.values())) <= 50_000


def test_what_was_skipped_is_a_gap_that_nobody_can_fill(site: Site) -> None:
    site.listen()
    before = site.publish()
    site.publisher.skip()
    site.count += 1
    after = site.publish()
    wait_until(lambda: site.read() or after in site.heard, "the batch behind the gap")
    assert after == before + 2
    assert before in site.heard and before + 1 not in site.heard
    assert list(site.replay(before)) == [before, after]


def test_a_reader_of_a_replay_that_does_not_read_is_given_up(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are served then."""
    monkeypatch.setattr(publisher_module, "_REPLAY_SECONDS", 0.2)
    for _ in range(UNREAD):
        last = site.publish(TOKENS)
    site.wait_sent(last)
    deaf = site.context.socket(zmq.DEALER)
    deaf.setsockopt(zmq.RCVHWM, 1)
    deaf.connect(site.asker.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())
    deaf.send_multipart([b"", bytes(8)])
    wait_until(lambda: site.replayed[-1] == site.count, "its replay begins")
    assert list(site.replay(last)) == [last]
