"""One family of addresses or both, however the operator writes it."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest

from sidecar import addresses, listeners
from sidecar.config.values import host, wire_host
from tests.support.server import free_port

IPV4, IPV6 = "127.0.0.1", "::1"


def has_ipv6() -> bool:
    try:
        socket.create_server((IPV6, 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("given", "reached"),
    [
        ("127.0.0.1", [IPV4]),
        ("0.0.0.0", [IPV4]),
        pytest.param("*", [IPV4, IPV6], marks=needs_ipv6),
        pytest.param("::", [IPV4, IPV6], marks=needs_ipv6),
        pytest.param("::1", [IPV6], marks=needs_ipv6),
        pytest.param("[::1]", [IPV6], marks=needs_ipv6),
    ],
)
def test_what_is_listened_on_is_reached(given: str, reached: list[str]) -> None:
    port = free_port()
    sockets = listeners.listen(host(given), port)
    assert [each for each in (IPV4, IPV6) if answers(each, port)] == reached
    listeners.close(sockets)


@needs_ipv6
def test_all_addresses_of_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (IPV6, port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (IPV4, port)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (IPV4, port)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.77", port)),  # no longer ours
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    sockets = listeners.listen("name", port)
    assert len(sockets) == 2 and answers(IPV4, port) and answers(IPV6, port)
    listeners.close(sockets)


def test_everywhere_is_ipv4_where_there_is_no_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    create = socket.create_server

    def without_ipv6(address: Any, *, family: int, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return create(address, family=family, **options)

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    port = free_port()
    sockets = listeners.listen("*", port)
    assert answers(IPV4, port)
    listeners.close(sockets)
    with pytest.raises(OSError, match=r"cannot listen on \[::1\]:.*: Address family not supp"):
        listeners.listen("::1", port)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("[::1]", "::1"), ("::", "::"), ("*", "*"), ("fe80::1%eth0", "fe80::1%eth0"), ("a.b", "a.b")],
)
def test_hosts(given: str, kept: str) -> None:
    assert host(given) == kept == wire_host(given)


@pytest.mark.parametrize("given", ["[::1", "::1]", "[a.b]", "a:5555", "1:2:3", "[]", "::1:http"])
def test_what_is_no_host(given: str) -> None:
    with pytest.raises(ValueError, match="is not a host name or address"):
        host(given)


@pytest.mark.parametrize(
    ("listens", "client"),
    [("*", "127.0.0.1"), ("0.0.0.0", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]"),
     ("localhost", "localhost")],
)  # fmt: skip
def test_where_a_client_of_this_machine_connects_to(listens: str, client: str) -> None:
    assert addresses.local(listens) == client
