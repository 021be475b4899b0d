"""Connections are bounded, each and all together, and a heavy one waits for itself."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from sidecar.wire import peer, router
from sidecar.wire.listener import Listener
from sidecar.wire.router import Router
from sidecar.wire.zmtp import Message, encode
from tests.support.zmtp import HELLO, RawPeer

LIMIT = 1 << 20


class Site:
    """A router whose turns are taken by hand. `serve` is what a message does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.served: list[tuple[bytes, Message]] = []
        self.dropped: list[str] = []
        self.posted: list[Callable[[], None]] = []
        self.serve: Callable[[bytes, Message], None] = lambda identity, message: None
        self.router = Router(
            LIMIT, 11, lambda identity, listener: None, lambda identity: None, self._on_message,
            lambda reason, _: self.dropped.append(reason), self.posted.append,
        )  # fmt: skip
        self.router.listen(Listener(f"ipc://{path}", 0o600))
        self.peers: list[RawPeer] = []

    def _on_message(self, identity: bytes, message: Message) -> None:
        self.served.append((identity, message))
        self.serve(identity, message)

    def connect(self) -> RawPeer:
        self.peers.append(RawPeer.unix(self.path))
        self.turns(3)
        return self.peers[-1]

    def turns(self, count: int) -> None:
        for _ in range(count):
            posted, self.posted[:] = list(self.posted), []
            self.router.on_readable()
            for callback in posted:
                callback()

    def close(self) -> None:
        for each in self.peers:
            each.close()
        self.router.close(0.1)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path / "mp")
    yield made
    made.close()


def test_a_peer_that_never_ends_its_message_holds_no_memory(site: Site) -> None:
    endless = site.connect()
    endless.send(encode([b"u", b"o", b""])[:-2])
    for _ in range(200):
        endless.send(encode([bytes(120_000), b""])[:-2])
        site.turns(4)
        assert site.router.held <= 2 * LIMIT
    assert not site.served and not site.dropped
    endless.send(encode([b"end"]))
    site.turns(4)
    assert site.served[0][1] == Message([b"u", b"o"], oversized=True)


def test_who_does_not_read_its_answers_may_not_ask_more(site: Site) -> None:
    """What it has not read is bounded, and nothing of it is lost."""
    site.serve = lambda identity, message: site.router.send(identity, [*message.frames, answer])
    deaf, honest, answer = site.connect(), site.connect(), bytes(10_000)
    deaf.receive()  # the server's greeting
    asked = 0
    for _ in range(2000):
        asked += deaf.try_send(encode([b"u", b"o"]))
        site.turns(2)
        assert site.router.held <= 2 * peer._UNREAD_BYTES
    assert 100 < len(site.served) < asked, "it was served, and then no more"
    honest.send(encode([b"h", b"o"]))
    site.turns(2)
    assert site.served[-1][1].frames == [b"h", b"o"]
    received = 0
    expected = asked * len(encode([b"u", b"o", answer]))
    while received < expected:  # it reads at last
        received += len(deaf.receive())
        site.turns(2)
    assert len(site.served) == asked + 1 and received == expected


def test_all_together_hold_a_bounded_amount_and_the_honest_stay(site: Site) -> None:
    """Those go that have held much for long."""
    honest = site.connect()
    hoarders = [site.connect() for _ in range(3 * router._LARGEST_MESSAGES)]
    part = encode([b"u", b"o", bytes(LIMIT - 1000)])[:-1]
    for hoarder in hoarders:
        hoarder.send_all(part, lambda: site.turns(1))
        assert site.router.held <= router._LARGEST_MESSAGES * LIMIT
    assert site.dropped.count("memory") >= 2 * router._LARGEST_MESSAGES - 1
    honest.send_all(encode([b"h", b"o", bytes(LIMIT // 2)])[:-1], lambda: site.turns(1))
    honest.send(b"\0")
    site.turns(4)
    assert [message.frames[0] for _, message in site.served] == [b"h"]


@pytest.mark.parametrize("heavy_peers", [1, 8])
def test_a_light_peer_does_not_wait_for_heavy_ones(
    site: Site, monkeypatch: pytest.MonkeyPatch, heavy_peers: int
) -> None:
    """Each request of theirs takes longer than a turn; it is served before their second."""
    now = [0.0]
    monkeypatch.setattr(router, "time", SimpleNamespace(monotonic=lambda: now[0]))
    order: list[bytes] = []

    def serve(identity: bytes, message: Message) -> None:
        order.append(message.frames[1])
        now[0] += 0.1 if message.frames[1] == b"heavy" else 0.0001

    site.serve = serve
    light = site.connect()
    heavies = [site.connect() for _ in range(heavy_peers)]
    for heavy in heavies:
        for _ in range(20):
            heavy.send(encode([b"u", b"heavy"]))
    waits = []
    for _ in range(10):
        site.turns(1)
        light.send(encode([b"u", b"light"]))
        before = len(order)
        while b"light" not in order[before:]:
            site.turns(1)
        waits.append(order[before:].index(b"light"))
    assert waits[0] <= heavy_peers and max(waits[1:]) <= 2
    while order.count(b"heavy") < 20 * heavy_peers:  # nor does anybody starve
        site.turns(1)


def test_a_turn_ends_after_a_bounded_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(router, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def serve(identity: bytes, message: Message) -> None:
        now[0] += 0.01

    site.serve = serve
    for peer_of_many in [site.connect() for _ in range(30)]:
        peer_of_many.send(b"".join([encode([b"u", b"o"])] * 5))
    while len(site.served) < 150:
        before = now[0]
        site.posted.clear()
        site.router.on_readable()
        assert now[0] - before <= router._TURN_SECONDS + 0.02


def test_who_does_not_greet_is_let_go(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    silent, other = RawPeer.unix(site.path, hello=b""), site.connect()
    site.turns(2)
    now = router.time.monotonic() + router._GREETING_SECONDS + 1
    monkeypatch.setattr(router, "time", SimpleNamespace(monotonic=lambda: now))
    site.router.tick()
    assert silent.is_closed()
    other.send(encode([b"u", b"o"]))
    site.turns(2)
    assert len(site.served) == 1
    silent.close()


def test_no_more_connections_than_there_may_be(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router, "_MAX_PEERS", 3)
    kept = [site.connect() for _ in range(3)]
    assert site.connect().is_closed()
    assert site.dropped == ["too_many_connections"]
    kept[0].close()
    site.turns(2)
    late = site.connect()
    late.send(encode([b"u", b"o"]))
    site.turns(2)
    assert len(site.served) == 1


def test_without_descriptors_connections_wait(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are not lost, and the loop does not spin over them."""

    def spent(self: socket.socket) -> None:
        raise OSError(24, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "accept", spent)
        early = site.connect()
        site.turns(5)
        assert site.dropped == ["no_descriptors"]
        site.router.tick()
        site.turns(2)
        assert site.dropped == ["no_descriptors"] * 2
    site.router.tick()
    site.turns(2)
    early.send(encode([b"u", b"o"]))
    site.turns(2)
    assert len(site.served) == 1


def test_what_is_broken_ends_one_connection(site: Site) -> None:
    broken, honest = site.connect(), site.connect()
    broken.send(b"\xff" * 10)
    honest.send(encode([b"u", b"o"]))
    site.turns(3)
    assert broken.is_closed() and site.dropped == ["protocol"]
    assert len(site.served) == 1


def test_what_was_asked_before_the_end_of_a_connection_is_served(site: Site) -> None:
    """An unregistration, say."""
    leaver = RawPeer.unix(site.path, hello=HELLO + encode([b"u", b"o"]) * 3)
    leaver.close()
    site.turns(4)
    assert len(site.served) == 3
    assert not site.router.is_connected(site.served[0][0])
