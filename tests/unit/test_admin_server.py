"""Starting and stopping the admin thread, and its ports."""

import socket
import threading

import httpx
import pytest

from sidecar.admin import AdminServer
from sidecar.config import Config
from sidecar.telemetry import Telemetry
from tests.support.admin_site import Loop, Service, Site
from tests.support.server import free_port


def test_metrics_and_health_on_their_own_port_alone() -> None:
    port = free_port()
    site = Site(prometheus_port=port)
    url = f"http://127.0.0.1:{port}"
    assert "lmcache_mp_refusals_total" in httpx.get(f"{url}/metrics").text
    assert httpx.get(f"{url}/healthcheck").json() == {"status": "healthy"}
    site.service.reason = "shutting down"
    reply = httpx.get(f"{url}/healthcheck")
    assert (reply.status_code, reply.json()["reason"]) == (503, "shutting down")
    assert httpx.post(f"{url}/healthcheck").status_code == 405
    assert httpx.head(f"{url}/healthcheck").status_code == 503
    for path in ("/", "/status", "/config"):
        assert httpx.get(url + path).status_code == 404
    assert httpx.post(f"{url}/cache/clear").status_code == 404
    assert httpx.post(f"{url}/metrics").status_code == 405
    site.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/metrics")


def test_disabled_metrics_are_not_found() -> None:
    site = Site(disable_metrics=True)
    assert site.http.get("/metrics").status_code == 404
    assert site.http.get("/healthcheck").status_code == 200
    site.close()


def test_a_port_in_use_is_known_before_the_thread_starts() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        before = set(threading.enumerate())
        for options in ({"http_port": port}, {"http_port": 0, "prometheus_port": port}):
            config = Config(l1_size_gb=1, **options)
            server = AdminServer(config, Service(), Loop(), Telemetry())
            with pytest.raises(OSError) as caught:
                server.start()
            assert str(caught.value) == (
                f"cannot listen on 127.0.0.1:{port}: Address already in use"
            )
            server.stop()
        assert not [t for t in threading.enumerate() if t.name == "admin" and t not in before]


def test_an_unknown_host_is_named() -> None:
    config = Config(l1_size_gb=1, http_host="no-such-host.invalid")
    with pytest.raises(OSError) as caught:
        AdminServer(config, Service(), Loop(), Telemetry()).start()
    assert str(caught.value).startswith("cannot listen on no-such-host.invalid:8080: ")


def test_stop_right_after_start_and_stop_without_start() -> None:
    config = Config(l1_size_gb=1, http_port=0)
    server = AdminServer(config, Service(), Loop(), Telemetry())
    server.stop()
    server.start()
    port = server.port
    server.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_stop_with_an_idle_connection_open() -> None:
    before = set(threading.enumerate())
    site = Site()
    site.http.get("/healthcheck")
    site.server.stop()
    assert not [t for t in threading.enumerate() if t.name == "admin" and t not in before]
    site.close()
