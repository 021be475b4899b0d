"""Peers that connect to the admin port and do not behave."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator

import pytest

from sidecar.admin import connections
from tests.support.admin_site import HANDLE, Site

HALVES = {
    "nothing": b"",
    "half a header": b"GET /healthcheck HTTP/1.1\r\nHost: local",
    "half a body": b"POST /cache/clear HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{",
    "a second half": b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\nGET /vers",
}


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


def test_idle_connections_keep_health_checks_out_for_a_moment_only(impatient: Site) -> None:
    idle = [connect(impatient) for _ in range(70)]
    for peer in idle:
        read_to_the_end(peer)
        peer.close()
    assert impatient.http.get("/healthcheck").status_code == 200


def test_who_does_not_read_is_cut_off(impatient: Site) -> None:
    impatient.service.workers = [{**HANDLE, "model_name": "m" * 2**24}]
    before = open_files()
    with connect(impatient) as peer:
        peer.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert peer.recv(1) == b"H"
        deadline = time.monotonic() + 30
        while open_files() > before + 1:  # the server's end is there
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert read_to_the_end(peer) < 2**24


def test_noise_does_not_fill_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), connect(site) as peer:
        peer.sendall(b"\0\1\2 not HTTP\r\n\r\n")
        read_to_the_end(peer)
    assert [record for record in caplog.records if record.levelno >= logging.INFO] == []
