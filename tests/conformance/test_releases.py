"""The stock adapters of older releases against a running server, each in a process of its own.

Up to 0.4.6 they need a GPU; what those say on the wire is in test_gpu_releases.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

pytest.importorskip("lmcache", reason="the stock client is not installed")

from tests.support.old_clients import ENGINE, HANDLE, OldClient, blocks_of
from tests.support.raw import RawClient, encode
from tests.support.releases import RELEASES
from tests.support.server import CHUNK_SIZE, Server, free_port, wait_until

ON_A_CPU = RELEASES[RELEASES.index("0.4.7") :]
HEARTBEAT = 1.0
_first_tokens = itertools.count(1000)


def tokens(chunks: int) -> list[int]:
    """Of a prompt of its own."""
    return [next(_first_tokens), *range(1, chunks * CHUNK_SIZE)]


@pytest.fixture
def connect() -> Iterator[Callable[[str], OldClient]]:
    made: list[OldClient] = []

    def connect(release: str) -> OldClient:
        made.append(OldClient(release))
        return made[-1]

    yield connect
    for client in made:
        client.close()


@pytest.mark.parametrize("release", ON_A_CPU)
def test_store_find_load_and_a_restart_in_the_middle(
    connect: Callable[[str], OldClient], own_server: Server, release: str
) -> None:
    client = connect(release)
    for mode in (HANDLE, ENGINE):
        model = f"{release}-{mode}"
        client.start(own_server.url, model, mode, heartbeat=HEARTBEAT)
        client.round_trip(tokens(3), "before")
        own_server.assert_no_leases()
        own_server.kill()
        own_server.start()
        wait_for_worker(own_server, client)
        client.round_trip(tokens(2), "after")
        wanted = tokens(2)
        assert client.call("store", wanted, blocks_of(wanted, "freed")[0], "freed-s")
        assert client.call("lookup", wanted, "freed") == 2
        client.call("free", wanted, "freed")  # vLLM has computed it meanwhile
        own_server.assert_no_leases()
        client.call("end", wanted, "freed")
        client.call("shutdown")
        own_server.assert_no_leases()


def wait_for_worker(server: Server, client: OldClient) -> None:
    """Until it has seen that the server is a new one, and has registered with it."""
    wait_until(lambda: server.instances() and client.call("healthy"), "it registers again")
    # A scheduler of 0.5.3 or 0.5.4 does not ping. The end of a request tells what it speaks.
    client.call("end", [], "before the restart")
    # A probe that nobody answers takes the client's own timeout, half of this deadline's default.
    wait_until(lambda: is_served(client), "it stores and finds again", timeout=240)


def is_served(client: OldClient) -> bool:
    """The first requests on a new connection may miss: a stock client waits for none."""
    prompt = tokens(1)
    request = f"probe-{prompt[0]}"
    client.call("store", prompt, blocks_of(prompt, request)[0], f"{request}-s")
    found = client.call("lookup", prompt, request)
    client.call("end", prompt, request)
    return bool(found == 1)


def test_generations_share_one_server_and_what_it_holds(
    connect: Callable[[str | None], OldClient], own_server: Server
) -> None:
    """Four at a time, of four tables; the layout is the same, so hits go across.

    Not with engine-driven workers: releases view an object in different shapes there.
    """
    clients = [connect(release) for release in ("0.4.7", "0.5.2", "0.5.5", None)]
    for seed, client in enumerate(clients):
        client.start(own_server.url, "shared", HANDLE, seed=seed)
    for number, writer in enumerate(clients):
        prompt = tokens(3)
        writer.round_trip(prompt, f"w{number}")
        source, target = blocks_of(prompt, f"w{number}")
        wanted = writer.call("digest", source)
        for reader in clients:
            request = f"r{number}-{id(reader)}"
            assert reader.call("lookup", prompt, request) == 3
            assert reader.call("retrieve", prompt, target, request) == []
            assert reader.call("digest", target) == wanted
            reader.call("end", prompt, request)
    for client in clients:
        client.call("shutdown")
    own_server.assert_no_leases()


@pytest.mark.parametrize("release", ["0.4.7", "0.5.2", "0.5.4", "0.5.5"])
def test_a_load_that_fails_is_computed_again(
    connect: Callable[[str], OldClient], own_server: Server, release: str
) -> None:
    """vLLM is told which blocks have not been filled, though the client ignores a plain "no"."""
    client = connect(release)
    target = list(range(20, 28))
    for mode in (HANDLE, ENGINE):
        client.start(own_server.url, f"{release}-{mode}", mode, heartbeat=HEARTBEAT)
        prompt = tokens(2)
        client.round_trip(prompt, "before")
        assert client.call("lookup", prompt, "lost") == 2
        own_server.request("/cache/clear", {"tier": "l1", "force": True})
        assert client.call("retrieve", prompt, target, "lost") == target
        client.call("shutdown")
    own_server.assert_no_leases()


def test_a_port_of_its_own_for_a_release(
    connect: Callable[[str], OldClient], new_server: Callable[..., Server]
) -> None:
    """Nothing has to be found out there: also a first request without a greeting is understood."""
    port = free_port()
    server = new_server("--client-ports", f"{port}=0.4.7").start()
    # 9 with a request id ends a session up to 0.4.7, and asks for a result since 0.5.3.
    answers = {}
    for url in (server.url, f"tcp://127.0.0.1:{port}"):
        with RawClient(url) as client:
            answers[url] = client.exchange([encode(7), encode(9), encode("r")])[1:]
    assert list(answers.values()) == [[encode(9), encode(0)], [encode(9)]]
    old = connect("0.4.7")
    old.start(f"tcp://127.0.0.1:{port}", "m", HANDLE)
    old.round_trip(tokens(2), "r")
    assert [worker["lmcache"] for worker in server.status()["workers"]] == ["0.4.7"]
    old.call("shutdown")


def test_a_release_that_is_fixed(
    connect: Callable[[str], OldClient], new_server: Callable[..., Server]
) -> None:
    """On the server's own port."""
    server = new_server("--client-generation", "0.5.2").start()
    old = connect("0.5.2")
    old.start(server.url, "m", HANDLE)
    old.round_trip(tokens(2), "r")
    assert [worker["lmcache"] for worker in server.status()["workers"]] == ["0.5.0-0.5.2"]
    old.call("shutdown")


def test_a_client_that_was_told_to_give_up_loads_again_later(
    connect: Callable[[str], OldClient], own_server: Server
) -> None:
    client = connect("0.5.2")
    client.start(own_server.url, "m", HANDLE, heartbeat=HEARTBEAT)
    client.round_trip(tokens(2), "before")
    prompt = tokens(2)
    assert client.call("store", prompt, list(range(1, 9)), "s")
    assert client.call("lookup", prompt, "lost") == 2
    own_server.request("/cache/clear", {"tier": "l1", "force": True})
    assert client.call("retrieve", prompt, list(range(20, 28)), "lost") == list(range(20, 28))
    wait_until(lambda: client.call("healthy"), "it is told that all is well")
    wait_for_worker(own_server, client)
    assert client.call("store", prompt, list(range(1, 9)), "s2")
    requests = itertools.count()
    wait_until(lambda: client.call("lookup", prompt, f"r{next(requests)}") == 2, "it finds again")
    client.round_trip(tokens(2), "after")
