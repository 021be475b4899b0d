"""A connection ends in time, whatever the network does not say of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from connectors.native import wire
from connectors.native.arena import Arenas
from connectors.native.connection import CONNECT_SECONDS, Dealer
from connectors.native.membership import Membership
from connectors.native.session import RECONNECT_SECONDS, Session
from tests.support.server import wait_until

# RFC 6761: it resolves nowhere. libzmq tells nobody that it has failed to.
NOWHERE = "tcp://no-such-host.invalid:5555"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Owner:
    def held(self) -> tuple[list[int], list[str]]:
        return [], []

    def voided(self) -> None:
        """There is nothing."""

    disconnected = voided


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


def listening(context: zmq.Context[zmq.Socket[bytes]]) -> tuple[zmq.Socket[bytes], str]:
    router = context.socket(zmq.ROUTER)
    return router, f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}"


def test_a_name_that_does_not_resolve_ends_a_connection(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    clock = Clock()
    dealer = Dealer(context, NOWHERE, clock)
    assert not dealer.ended()
    clock.now += CONNECT_SECONDS
    assert dealer.ended()
    dealer.close()


def test_one_that_is_made_lasts(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    """Though nobody has asked for a long time whether it has ended."""
    router, url = listening(context)
    clock = Clock()
    dealer = Dealer(context, url, clock)
    dealer.send([b"there"])
    assert router.poll(30_000)
    clock.now += 100 * CONNECT_SECONDS
    wait_until(lambda: not dealer.ended(), "it is known to be made")
    router.close(linger=0)
    wait_until(dealer.ended, "it has ended")
    dealer.close()


def test_a_scheduler_tries_again_until_the_name_resolves(
    context: zmq.Context[zmq.Socket[bytes]],
) -> None:
    clock = Clock()
    router, url = listening(context)
    urls = iter([NOWHERE, NOWHERE])
    attach = wire.Attach(
        engine="e", incarnation=bytes(16), model="m", ranks=1, groups=1, object_bytes=4096,
        chunk_tokens=16, identity=bytes(32),
    )  # fmt: skip
    session = Session(
        lambda: attach, lambda: Dealer(context, next(urls, url), clock), Owner(), clock
    )
    for _ in range(int(3 * (CONNECT_SECONDS + RECONNECT_SECONDS))):
        session.poll()
        clock.now += 1.0

    assert router.poll(30_000), "nobody has come"
    session.close()


def test_a_worker_tries_again_until_the_name_resolves(
    context: zmq.Context[zmq.Socket[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    router, url = listening(context)
    monkeypatch.setattr("connectors.native.membership.RECONNECT_SECONDS", 0.01)
    clock = Clock()
    urls = iter([NOWHERE, NOWHERE])

    def connect() -> Dealer:
        dealer = Dealer(context, at := next(urls, url), clock)
        clock.now += CONNECT_SECONDS if at == NOWHERE else 0.0
        return dealer

    join = wire.Join(
        engine="e", incarnation=bytes(16), rank=0, ranks=1, object_bytes=4096, layout=bytes(32)
    )
    membership = Membership(join, Arenas(), connect)
    membership.start()
    assert router.poll(30_000), "nobody has come"
    membership.stop()
