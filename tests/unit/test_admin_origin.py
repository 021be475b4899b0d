"""What a page of another site can do through a browser on this machine: nothing."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from sidecar.admin.origin import Names, objection
from tests.support.admin_site import Site
from tests.support.server import wait_until
from tests.unit.test_admin_server import free_port


@pytest.fixture(scope="module")
def with_metrics() -> Iterator[tuple[Site, str]]:
    port = free_port()
    site = Site(prometheus_port=port)
    yield site, f"http://127.0.0.1:{port}"
    site.close()


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:1", "http://[", ""]
)
@pytest.mark.parametrize("path", ["/cache/clear", "/clear-cache", "/api/clear-cache"])
def test_another_sites_page_clears_nothing(site: Site, path: str, origin: str) -> None:
    # Such a POST needs no preflight, and no body.
    reply = site.http.post(path, headers={"origin": origin})
    assert reply.status_code == 403
    assert "may not change anything" in reply.json()["detail"]
    assert site.service.cleared == []


def test_another_sites_page_gets_no_leave_to_ask(site: Site) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "DELETE"}
    reply = site.http.options("/cache/objects", headers=headers)
    assert reply.status_code == 405
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_the_servers_own_origin_and_no_browser_at_all(site: Site) -> None:
    for headers in ({"origin": str(site.http.base_url)}, {}):
        assert site.http.post("/cache/clear", headers=headers).status_code == 200
    assert len(site.service.cleared) == 2


@pytest.mark.parametrize(
    "name", ["evil.example", "evil.example:8080", "localhost.evil.example", "["]
)
@pytest.mark.parametrize("path", ["/", "/status", "/config", "/metrics", "/page/state"])
def test_a_site_whose_name_means_this_machine_reads_nothing(
    site: Site, path: str, name: str
) -> None:
    reply = site.http.get(path, headers={"host": name})
    assert reply.status_code == 403
    assert reply.json() == {
        "detail": f"the request is for {name!r}, which is no name of this server"
    }


def test_nor_does_it_on_the_metrics_port(with_metrics: tuple[Site, str]) -> None:
    _, url = with_metrics
    assert httpx.get(f"{url}/metrics", headers={"host": "evil.example"}).status_code == 403
    assert httpx.get(f"{url}/metrics").status_code == 200


@pytest.mark.parametrize(
    "name",
    ["localhost", "LOCALHOST:1", "127.0.0.1", "[::1]:8080", "a.localhost", "10.0.0.7:9464",
     socket.gethostname()],
)  # fmt: skip
def test_names_of_this_machine(site: Site, name: str) -> None:
    # Behind a tunnel or `kubectl port-forward` the port is another one.
    assert site.http.get("/healthcheck", headers={"host": name}).status_code == 200


def test_the_full_name_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hostname -f` has it; who asks before the resolver has answered is told no."""
    answered = threading.Event()

    def resolve(host: str, *_: object, **__: object) -> list[Any]:
        assert host == socket.gethostname() and answered.wait(30)
        return [(2, 1, 6, "Node7.Cluster.Example.", ("127.0.1.1", 0)), (2, 2, 17, "", ())]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    names = Names("127.0.0.1")
    assert "node7.cluster.example" not in names
    answered.set()
    wait_until(lambda: "NODE7.cluster.example." in names, "the resolver")
    headers = {"host": "node7.cluster.example:9464"}
    assert objection("GET", headers, "127.0.0.1", names) is None
    assert objection("GET", {"host": "cluster.example"}, "127.0.0.1", names) is not None


@pytest.mark.parametrize(
    ("reached", "configured", "is_refused"),
    [
        ("127.0.0.1", "localhost", True),
        ("::ffff:127.0.0.1", "localhost", True),
        ("::1", "localhost", True),
        ("127.0.0.1", "Cache.lan", False),
        # A Service, a container's name: who can tell.
        ("10.0.0.7", "0.0.0.0", False),
        ("fd00::7", "::", False),
    ],
)
def test_other_names_by_where_they_arrive(reached: str, configured: str, is_refused: bool) -> None:
    told = objection("GET", {"host": "cache.lan:8080"}, reached, Names(configured))
    assert (told is not None) == is_refused


@pytest.mark.parametrize("path", ["/healthcheck", "/status", "/metrics", "/", "/nothing"])
def test_no_answer_is_taken_for_something_else(site: Site, path: str) -> None:
    assert site.http.get(path).headers["x-content-type-options"] == "nosniff"
