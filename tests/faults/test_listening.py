"""Servers on IPv4, IPv6 and both: workers, probes, doctor and status find them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.support.doctor import doctor
from tests.support.raw import RawClient, RawWorker
from tests.support.server import REPO, Server, free_port, wait_until
from tests.unit.test_listeners import needs_ipv6

pytestmark = needs_ipv6
IPV4, IPV6 = "127.0.0.1", "[::1]"


@pytest.mark.parametrize(("host", "reached"), [("[::1]", [IPV6]), ("*", [IPV4, IPV6])])
def test_all_ports_on_addresses_of_either_family(
    new_server: Callable[..., Server], host: str, reached: list[str]
) -> None:
    metrics = free_port()
    hosts = [f"--{name}={host}" for name in ("host", "http-host", "prometheus-host")]
    server = new_server(*hosts, "--prometheus-port", str(metrics))
    server.http = f"http://{reached[-1]}:{server.http_port}"
    server.start()
    for number, address in enumerate(reached):
        for port in (server.http_port, metrics):
            server.http = f"http://{address}:{port}"
            assert server.healthy()
        with RawClient(f"tcp://{address}:{server.port}") as client:
            worker = RawWorker(client, f"by-{number}", number)
            worker.register()
            worker.prove(list(range(128)), server.chunk_size)
            worker.close()
        url = f"http://{address}:{server.http_port}"
        status = subprocess.run(
            [sys.executable, "-m", "sidecar", "status", "--url", url], cwd=REPO, check=False
        )
        assert status.returncode == 0
    ports = ["--port", str(server.port), "--http-port", str(server.http_port)]
    _, found = doctor(*hosts, *ports, "--prometheus-port", str(metrics))
    assert "in use by a running kv-sidecar" in found["port"]["what"], found
    assert {found[name]["level"] for name in found if name.startswith("live")} == {"ok"}, found
    assert server.terminate() == 0
    # And now they are free.
    _, found = doctor(*hosts, *ports, "--prometheus-port", str(metrics))
    for name in ("port", "http port", "metrics port"):
        assert found[name]["what"].endswith("is free"), found
    wait_until(lambda: server.segments() == [], "nothing left")


def test_a_host_that_nobody_knows(new_server: Callable[..., Server]) -> None:
    server = new_server("--host", "no-such-host.invalid")
    server.spawn()
    assert server.wait() == 1
    line = server.stderr().splitlines()[-1]
    assert line.startswith("kv-sidecar: cannot listen on no-such-host.invalid:")
    assert "not known" in line or "resolution" in line
