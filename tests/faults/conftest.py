"""Raw clients of a server that the tests of this tier try to break."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from tests.support.gpu_site import gpu_server, gpu_site
from tests.support.raw import RawClient, RawWorker
from tests.support.server import Server

__all__ = ["gpu_server", "gpu_site", "raw", "still_serves", "worker"]

_numbers = itertools.count(1)


@pytest.fixture
def raw(server: Server) -> Iterator[RawClient]:
    with RawClient(server.url) as client:
        client.greet()
        yield client


@pytest.fixture
def still_serves(server: Server) -> Callable[[], None]:
    """Call it after the damage: a ping is answered, a store and a retrieve are correct, and so are
    all accounts of the L1."""

    def check() -> None:
        number = next(_numbers)
        with RawClient(server.url) as client:
            client.greet()
            assert client.call("ping", None) is True
            worker = RawWorker(client, f"survivor-{number}", 10_000 + number)
            worker.register()
            worker.prove([number, *range(1, 128)], server.chunk_size)
            worker.close()
        assert server.request("/cache/check", {}) == (200, '{"status":"ok"}')

    return check


@pytest.fixture
def worker(raw: RawClient) -> Iterator[RawWorker]:
    """A registered handle-mode worker with a model of its own."""
    number = next(_numbers)
    made = RawWorker(raw, f"model-{number}", 20_000 + number)
    made.register()
    yield made
    made.close()
