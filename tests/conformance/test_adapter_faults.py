"""A backend that dies, is silent, full or locked makes calls fail; it does not make them hang."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import numpy as np
import pytest

from sidecar.tiers.base import Adapter, AdapterUnusable, Bytes, Missing, NoSpace, TierError
from sidecar.tiers.names import ObjectName
from tests.conformance.adapter_cases import (
    MIB,
    PAGE,
    TIMEOUT,
    Spec,
    build,
    mooncake,
    names,
    nixl_azure,
    nixl_obj,
    opened,
    outcome,
    resp,
    s3,
)
from tests.support import storage
from tests.support.mock_adapter import MOCK
from tests.support.server import free_port, wait_until

Server = Callable[..., AbstractContextManager[storage.Storage]]
Speak = Callable[[int, str], Spec]
ON_THE_NETWORK = [
    pytest.param(storage.moto, nixl_obj, id="nixl-obj"),
    pytest.param(storage.azurite, nixl_azure, id="nixl-azure"),
    pytest.param(storage.moto, s3, id="s3-moto"),
    pytest.param(storage.s3rver, s3, id="s3-s3rver"),
    pytest.param(storage.redis, resp, id="resp"),
    pytest.param(storage.mooncake_master, mooncake, id="mooncake"),
]


@pytest.fixture
def arena() -> Bytes:
    return np.frombuffer(mmap.mmap(-1, 32 * MIB), np.uint8)


def spec_of(speak: Speak, port: int) -> Spec:
    return {**speak(port, "faults"), **TIMEOUT}


def calls(adapter: Adapter, name: ObjectName, arena: Bytes) -> list[Callable[[], object]]:
    record = arena[:MIB]
    return [
        lambda: adapter.find([name]),
        lambda: adapter.load(name, record),
        lambda: adapter.store(name, record),
    ]


def assert_fails(
    adapter: Adapter, name: ObjectName, arena: Bytes, speak: Speak | None = None
) -> None:
    """Given a `speak` of NIXL's only the first call is made: its calls take up to 4 minutes."""
    for call in calls(adapter, name, arena)[: 1 if speak in (nixl_obj, nixl_azure) else 3]:
        assert isinstance(outcome(call), TierError)


@pytest.mark.parametrize(("server", "speak"), ON_THE_NETWORK)
def test_a_server_that_dies(server: Server, speak: Speak, arena: Bytes) -> None:
    """Calls fail until it is back, and then they work."""
    [name] = names("dies", 1)
    with server() as running, opened(spec_of(speak, running.port), arena) as adapter:
        adapter.store(name, arena[:MIB])
        running.kill()
        assert_fails(adapter, name, arena)
        running.start()
        wait_until(lambda: not isinstance(outcome(lambda: adapter.find([name])), TierError), "back")


@pytest.mark.parametrize(("server", "speak"), ON_THE_NETWORK)
def test_deletes_fail_too(server: Server, speak: Speak, arena: Bytes) -> None:
    if speak in (nixl_obj, nixl_azure):
        pytest.skip("NIXL's calls take up to 4 minutes")
    [name] = names("deletes", 1)
    with server() as running, opened(spec_of(speak, running.port), arena) as adapter:
        running.kill()
        assert isinstance(outcome(lambda: adapter.delete([name])), TierError)
        assert isinstance(outcome(lambda: adapter.set_aside(name, "header")), TierError)
        if speak is not mooncake:  # it lists nothing
            assert isinstance(outcome(lambda: list(adapter.scan())), TierError)


@pytest.mark.parametrize(("server", "speak"), ON_THE_NETWORK)
def test_a_server_that_is_silent(server: Server, speak: Speak, arena: Bytes) -> None:
    """It takes connections and answers nothing. An adapter may say so when it is opened."""
    [name] = names("silent", 1)
    with storage.silent_server() as port:
        adapter = build(spec_of(speak, port))
        try:
            outcome(lambda: adapter.open(arena))
        except AdapterUnusable:
            return
        assert_fails(adapter, name, arena, speak)
        outcome(adapter.close)


@pytest.mark.parametrize(("server", "speak"), ON_THE_NETWORK)
def test_a_server_that_comes_later(server: Server, speak: Speak, arena: Bytes) -> None:
    """An adapter can be opened without its server, and finds it when it is there."""
    [name] = names("later", 1)
    with ExitStack() as stack:
        port = free_port()
        adapter = stack.enter_context(opened(spec_of(speak, port), arena))
        assert_fails(adapter, name, arena, speak)
        later = stack.enter_context(server(port=port))
        wait_until(lambda: stored(adapter, name, arena), f"a server at {later.port}")


def stored(adapter: Adapter, name: ObjectName, arena: Bytes) -> bool:
    return not isinstance(outcome(lambda: adapter.store(name, arena[:PAGE])), TierError)


def test_a_wrong_key_for_azure(arena: Bytes) -> None:
    [name] = names("wrong", 1)
    with storage.azurite() as server:
        wrong = nixl_azure(server.port, "wrong", key="d3Jvbmc=")
        with opened(wrong, arena) as adapter:
            assert_fails(adapter, name, arena)


def test_a_wrong_key_for_s3(arena: Bytes) -> None:
    [name] = names("wrong", 1)
    with (
        storage.s3rver() as server,
        opened(s3(server.port, "wrong", key="wrong"), arena) as adapter,
    ):
        for call in [
            *calls(adapter, name, arena),
            lambda: adapter.delete([name]),
            lambda: list(adapter.scan()),
        ]:
            error = outcome(call)
            assert isinstance(error, TierError) and error.cause == "http_403"


def test_a_bucket_that_does_not_exist(arena: Bytes) -> None:
    """A store says so; that an object of it is missing would hide it for good."""
    [name] = names("bucket", 1)
    with storage.moto() as server:
        spec = {**s3(server.port, "x"), "bucket": "another-bucket"}
        with opened(spec, arena) as adapter:
            for call in calls(adapter, name, arena)[1:]:
                error = outcome(call)
                assert isinstance(error, TierError) and error.cause == "no_bucket"


@pytest.mark.parametrize("given", [{}, {"password": "wrong"}], ids=["none", "wrong"])
def test_a_password_for_redis(given: Spec, arena: Bytes) -> None:
    [name] = names("password", 1)
    with storage.redis("--requirepass", "right") as server:
        with opened(resp(server.port, "x", **given), arena) as adapter:
            for call in calls(adapter, name, arena):
                error = outcome(call)
                assert isinstance(error, TierError) and error.cause == "unauthenticated"
        with opened(resp(server.port, "x", password="right"), arena) as adapter:
            assert stored(adapter, name, arena)


def fill_up(adapter: Adapter, arena: Bytes) -> object:
    """What ends a series of stores of 8 MiB."""
    for name in names("full", 64):
        error = outcome(lambda name=name: adapter.store(name, arena[: 8 * MIB]))  # type: ignore[misc]
        if error is not None:
            return error
    return None


def test_a_full_redis(arena: Bytes) -> None:
    with (
        storage.redis("--maxmemory", "40mb", "--maxmemory-policy", "noeviction") as server,
        opened(resp(server.port, "x"), arena) as adapter,
    ):
        assert isinstance(fill_up(adapter, arena), NoSpace)
        adapter.delete(names("full", 64))
        assert stored(adapter, names("full", 1)[0], arena)


def test_a_full_pool(arena: Bytes) -> None:
    with (
        storage.mooncake_master() as server,
        opened(mooncake(server.port, "x", segment=64 * MIB), arena) as adapter,
    ):
        assert isinstance(fill_up(adapter, arena), NoSpace)


def test_a_full_mock(arena: Bytes) -> None:
    with opened({"type": MOCK, "max_size_gb": 32 / 1024}, arena) as adapter:
        assert isinstance(fill_up(adapter, arena), NoSpace)
        assert adapter.room() == 0


def test_a_value_that_redis_cannot_hold(arena: Bytes) -> None:
    with opened(resp(free_port(), "x"), arena) as adapter:
        error = outcome(lambda: adapter.store(names("x", 1)[0], np.empty(513 * MIB, np.uint8)))
        assert isinstance(error, TierError) and error.cause == "too_large"


def test_a_redis_that_allows_no_deletion(arena: Bytes) -> None:
    """Empty values take the place of what is to go."""
    rights = ["on", "nopass", "~*", "&*", "+@all", "-del", "-unlink", "-rename"]
    gone, bad, kept = some = names("rights", 3)
    with (
        storage.redis("--user", "default", *rights) as server,
        opened(resp(server.port, "rights", ttl_seconds=3600), arena) as adapter,
    ):
        for name in some:
            adapter.store(name, arena[:PAGE])
        adapter.delete([gone])
        assert adapter.set_aside(bad, "checksum") is False
        assert adapter.find(some) == [None, None, PAGE]
        for name in (gone, bad):
            with pytest.raises(Missing):
                adapter.load(name, arena[:PAGE])
        assert [found.name for batch in adapter.scan() for found in batch] == [kept]
