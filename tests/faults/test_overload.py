"""More than the server takes: it says no and serves the others."""

from __future__ import annotations

from collections.abc import Callable

from tests.support.raw import EVENT, RawClient, RawWorker, decode, encode, make_key
from tests.support.server import Server

TOKENS = list(range(128))
BLOCKS = list(range(1, 9))


def test_an_oversized_message(raw: RawClient, still_serves: Callable[[], None]) -> None:
    """Nobody keeps such a message in memory; it is answered, and its sender stays connected."""
    key = make_key(TOKENS, 0, 128, model="large")
    assert raw.call("ping", None) is True
    assert raw.call("commit_store", key, 1, b"\x80\x04" + b"\x00" * (80 << 20)) is False
    still_serves()
    assert raw.call("ping", None) is True


def test_a_large_message_within_the_limit(raw: RawClient) -> None:
    """Refused with an answer."""
    key = make_key(TOKENS, 0, 128, model="large")
    assert raw.call("commit_store", key, 1, b"\x80\x04" + b"\x00" * (30 << 20)) is False
    assert raw.call("ping", None) is True


def test_more_tokens_than_allowed(worker: RawWorker) -> None:
    tokens = list(range(3_000_000))
    key = make_key(tokens, 0, 2_999_936, model=worker.model)
    assert worker.store(key, BLOCKS) == [b"", False]
    assert worker.lookup({**key, "worker_id": None}) == 0
    worker.prove(TOKENS, 64)


def test_thousands_of_stores_at_once(worker: RawWorker) -> None:
    """Every one is answered: done, or refused because too many wait."""
    raw = worker.client
    requests = []
    for number in range(5000):
        key = make_key([number, *TOKENS[1:]], 0, 128, model=worker.model, request=f"r{number}")
        requests.append(raw.frames("store", key, worker.instance, [BLOCKS], EVENT))
    for frames in requests:
        raw.send(frames)
    replies = {reply[0]: decode(reply[2]) for reply in (raw.receive() for _ in requests)}
    assert replies.keys() == {frames[0] for frames in requests}
    assert {answer[1] for answer in replies.values()} <= {True, False}
    assert any(answer[1] for answer in replies.values())
    worker.prove(TOKENS, 64)


def test_lookups_that_nobody_asks_about(own_server: Server) -> None:
    """Ten thousand of them, misses all: bounded, and the next lookup still finds what is there."""
    with RawClient(own_server.url) as client:
        worker = RawWorker(client, "lost", 1)
        worker.register()
        for number in range(10_000):
            tokens = [number, *TOKENS[1:64]]
            key = make_key(tokens, 0, 64, model="lost", worker=None, request=f"lost-{number}")
            client.send(client.frames("lookup", key, 1))
        for _ in range(10_000):
            client.receive()
        worker.prove([99_999, *TOKENS[1:]], 64)
        worker.close()


def test_a_client_that_never_reads(server: Server, still_serves: Callable[[], None]) -> None:
    """Its replies pile up to a limit; the others do not notice."""
    with RawClient(server.url) as deaf:
        for number in range(60_000):
            deaf.send([encode(number), encode(24)])
        still_serves()


def test_many_clients(server: Server) -> None:
    clients = [RawClient(server.url) for _ in range(50)]
    for client in clients:
        client.send(client.frames("ping", 1))
    assert all(type(decode(client.receive()[2])) is bool for client in clients)
    for client in clients:
        client.close()


def test_clients_that_come_and_go(server: Server, still_serves: Callable[[], None]) -> None:
    """Gone before the answer, over and over."""
    key = make_key(TOKENS, 0, 128, model="fleeting", worker=None)
    for number in range(200):
        with RawClient(server.url) as client:
            client.send(client.frames("lookup", {**key, "request_id": f"r{number}"}, 1))
            client.send(client.frames("noop"))
            if number % 10 == 0:
                client.receive()
    still_serves()
