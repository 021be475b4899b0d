"""Peers that connect to the admin port and do not behave."""

import contextlib
import itertools
import logging
import os
import select
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import httpx
import pytest

from sidecar.admin import boundary, connections
from tests.support.admin_site import HANDLE, Site
from tests.support.server import free_port, wait_until

HALVES = {
    "nothing": b"",
    "half a header": b"GET /healthcheck HTTP/1.1\r\nHost: local",
    "half a body": b"POST /cache/clear HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{",
    "a second half": b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\nGET /vers",
}


BEHAVIOURS = {
    "says nothing": b"",
    "pipelines and does not read": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 60,
    "sends no end": b"GET /healthcheck HTTP/1.1\r\nX: ",
}
CHECKSUMS = b'{"block_ids": [1], "chunk_size": 1, "instance_id": 7}'


def request(method: str, path: str, body: bytes, length: int | None = None) -> bytes:
    """A request whose body is JSON; `length` if it says another one."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode() + body


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(connections, "PATIENCE_SECONDS", 600)
    site = Site(prometheus_port=free_port())
    yield site
    site.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(connections, "PATIENCE_SECONDS", 0.2)
    site = Site()
    yield site
    site.close()


def connect(site: Site) -> socket.socket:
    return socket.create_connection(("127.0.0.1", site.server.port), timeout=30)


def read_to_the_end(peer: socket.socket) -> int:
    """How many bytes came until the server closed."""
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while got := len(peer.recv(2**16)):
            count += got
    return count


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("sent", HALVES.values(), ids=HALVES)
def test_who_does_not_go_on_is_cut_off(impatient: Site, sent: bytes) -> None:
    with connect(impatient) as peer:
        peer.sendall(sent)
        read_to_the_end(peer)
    assert impatient.service.cleared == []


@pytest.mark.parametrize(
    ("port", "behaviour"),
    [*itertools.product(["admin"], BEHAVIOURS), ("metrics", "pipelines and does not read")],
)
def test_no_number_of_connections_keeps_health_checks_out(
    patient: Site, port: str, behaviour: str
) -> None:
    """Whatever they do, or do not do; each may stay for ten minutes if there is room."""
    number = patient.server.port if port == "admin" else patient.config.prometheus_port
    peers = [socket.create_connection(("127.0.0.1", number), timeout=30) for _ in range(80)]
    for peer in peers:
        peer.sendall(BEHAVIOURS[behaviour])
    url = f"http://127.0.0.1:{number}/healthcheck"
    assert [httpx.get(url, timeout=30).status_code for _ in range(20)] == [200] * 20
    for peer in peers:
        peer.close()


def test_who_pipelines_and_does_not_read_is_cut_off(impatient: Site) -> None:
    before = open_files()
    with connect(impatient) as peer:
        peer.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while peer.send(BEHAVIOURS["pipelines and does not read"]):
                pass
        wait_until(lambda: open_files() <= before + 1, "the server's end is closed")


def test_a_silent_connection_gives_way_before_one_that_is_being_answered(patient: Site) -> None:
    hashing: Future[dict[str, Any]] = Future()
    patient.service.block_checksums = lambda *_: hashing  # type: ignore[method-assign,assignment]
    with connect(patient) as asking:
        asking.sendall(request("POST", "/cache/checksums", CHECKSUMS))
        idle = [connect(patient) for _ in range(100)]
        read_to_the_end(idle[0])
        hashing.set_result({"chunk_checksums": ["d0"]})
        assert asking.recv(2**16).startswith(b"HTTP/1.1 200")
        for peer in idle:
            peer.close()


def test_what_is_being_answered_at_the_end_gets_its_no(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.service.block_checksums = lambda *_: Future()  # type: ignore[method-assign,assignment]
    with connect(site) as asking, connect(site) as half:
        half.sendall(HALVES["half a body"])
        asking.sendall(request("POST", "/cache/checksums", CHECKSUMS))
        assert site.http.get("/healthcheck").status_code == 200
        site.close()
        assert asking.recv(2**16).startswith(b"HTTP/1.1 503")
        assert read_to_the_end(half) == 0
    assert [record for record in caplog.records if record.exc_info] == []


def test_requests_whose_peers_have_gone_are_bounded(
    patient: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They go on; health is told all the same."""
    monkeypatch.setattr(boundary, "MAX_REQUESTS", 4)
    hashing: list[Future[dict[str, Any]]] = []

    def block_checksums(*_: object) -> Future[dict[str, Any]]:
        hashing.append(Future())
        return hashing[-1]

    patient.service.block_checksums = block_checksums  # type: ignore[method-assign]
    for number in range(4):
        with connect(patient) as peer:
            peer.sendall(request("POST", "/cache/checksums", CHECKSUMS))
            wait_until(lambda before=number: len(hashing) > before, "the request is under way")
    reply = patient.http.get("/version")
    assert (reply.status_code, reply.json()) == (503, {"detail": "too many requests at once"})
    assert patient.http.get("/healthcheck").status_code == 200
    for each in hashing:
        each.set_result({"chunk_checksums": ["d0"]})
    wait_until(lambda: patient.http.get("/version").status_code == 200, "room for requests")


def test_bodies_that_are_sent_at_once_are_bounded_together(patient: Site) -> None:
    """And what they took is given back."""
    begun = request("POST", "/cache/clear", b"{" + b" " * 9_000_000, length=9_500_000)
    senders = [connect(patient) for _ in range(5)]
    for sender in senders:
        sender.sendall(begun)
    answers = [peer.recv(12) for peer in select.select(senders, [], [], 30)[0]]
    assert answers == [b"HTTP/1.1 503"]
    for sender in senders:
        sender.close()
    wait_until(
        lambda: patient.http.post("/cache/clear", content=b" " * 9_000_000).status_code != 503,
        "room for bodies",
    )


def test_who_does_not_read_is_cut_off(impatient: Site) -> None:
    impatient.service.workers = [{**HANDLE, "model_name": "m" * 2**24}]
    before = open_files()
    with connect(impatient) as peer:
        peer.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert peer.recv(1) == b"H"
        wait_until(lambda: open_files() <= before + 1, "the server's end is closed")
        assert read_to_the_end(peer) < 2**24


def test_noise_does_not_fill_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), connect(site) as peer:
        peer.sendall(b"\0\1\2 not HTTP\r\n\r\n")
        read_to_the_end(peer)
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
