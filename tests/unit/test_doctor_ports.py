"""`kv-sidecar doctor`: addresses that the server could not listen on."""

from __future__ import annotations

import socket
from pathlib import Path

from sidecar.commands.doctor import ports
from sidecar.commands.doctor.surroundings import running_server
from tests.support.doctor import around, only
from tests.support.server import Server, free_port


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        surroundings = around("--host", "127.0.0.1", "--port", str(port), "--http-port", "0")
        (problem,) = only(ports.check(surroundings), "problem")
    assert problem.what == f"cannot listen on 127.0.0.1:{port}: Address already in use"
    assert only(ports.check(surroundings), "problem") == []


def test_one_port_for_two_purposes() -> None:
    port = str(free_port())
    findings = ports.check(around("--http-port", port, "--prometheus-port", port))
    assert only(findings, "problem")[0].what == f"{port} is the http port too"


def test_an_address_that_is_not_ours() -> None:
    (problem,) = only(ports.check(around("--host", "192.0.2.1", "--http-port", "0")), "problem")
    assert "Cannot assign requested address" in problem.what


def test_an_ipv6_address_in_brackets() -> None:
    surroundings = around("--host", "[::1]", "--port", str(free_port()), "--http-port", "0")
    findings = list(ports.check(surroundings))
    assert findings[0].what.startswith("[::1]:") or "not supported" in findings[0].what


def test_a_unix_socket_without_its_directory(tmp_path: Path) -> None:
    where = f"ipc://{tmp_path}/run/mp"
    (problem,) = only(ports.check(around("--host", where, "--http-port", "0")), "problem")
    assert problem.what.startswith(f"{tmp_path}/run is no directory")
    (tmp_path / "run").mkdir()
    assert only(ports.check(around("--host", where, "--http-port", "0")), "problem") == []


def test_a_server_with_another_port_for_workers_is_another_server(
    own_server: Server,
) -> None:
    other = around("--http-port", str(own_server.http_port), "--port", str(free_port()))
    assert running_server(other.config) is None
    (problem,) = only(ports.check(other), "problem")
    assert "Address already in use" in problem.what
