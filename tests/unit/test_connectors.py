"""The kv_transfer_config of each role."""

import inspect
import json
import subprocess
import sys
from typing import Any

import pytest

from connectors import lmcache_v1, roles
from connectors.errors import ConnectorError
from connectors.lmcache_mp import CacheServer
from connectors.nixl import Nixl
from connectors.offloading import NativeServer


def test_aggregated_worker() -> None:
    server = CacheServer(port=5556, transfer_mode="lmcache_driven", timeout_seconds=5)

    assert json.loads(json.dumps(roles.aggregated(server))) == {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
        "kv_connector_extra_config": {
            "lmcache.mp.host": "tcp://127.0.0.1",
            "lmcache.mp.port": 5556,
            "lmcache.mp.mp_transfer_mode": "lmcache_driven",
            "lmcache.mp.heartbeat_interval": 10,
            "lmcache.mp.mq_timeout": 5,
        },
    }


def test_a_worker_with_vllms_own_connector() -> None:
    server = NativeServer(host="ipc:///run/kv", port=5556, budget_ms=300, blocks_per_chunk=4)

    assert roles.aggregated(server) == {
        "kv_connector": "OffloadingConnector",
        "kv_connector_module_path": "connectors.native.connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "spec_name": "SidecarOffloadingSpec",
            "spec_module_path": "connectors.native.spec",
            "blocks_per_chunk": 4,
            "self_describing_kv_events": True,
            "kv_sidecar.url": "ipc:///run/kv:5556",
            "kv_sidecar.budget_ms": 300,
        },
    }
    nixl = Nixl()
    children = roles.prefill(server, nixl)["kv_connector_extra_config"]["connectors"]
    assert children[0] == roles.aggregated(server)
    extra = roles.aggregated(NativeServer(host="tcp://::1"))["kv_connector_extra_config"]
    assert extra["kv_sidecar.url"] == "tcp://[::1]:5555"


@pytest.mark.parametrize(
    "wrong",
    [{"host": "localhost"}, {"port": 0}, {"budget_ms": 0}, {"blocks_per_chunk": 0}],
)
def test_what_cannot_work_with_it_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConnectorError):
        NativeServer(**wrong)


def test_prefill_worker_has_the_sidecar_first_and_sends_over_nixl() -> None:
    server = CacheServer()
    config = roles.prefill(server, Nixl(buffer_device="cpu", backends=("UCX", "GDS")))

    assert config["kv_connector"] == "MultiConnector"
    assert config["kv_load_failure_policy"] == "recompute"
    assert config["kv_connector_extra_config"]["connectors"] == [
        roles.aggregated(server),
        {
            "kv_connector": "NixlConnector",
            "kv_role": "kv_producer",
            "kv_load_failure_policy": "recompute",
            "kv_buffer_device": "cpu",
            "kv_connector_extra_config": {"backends": ["UCX", "GDS"]},
        },
    ]


def test_decode_worker_fetches_over_nixl_and_has_no_cache() -> None:
    assert roles.decode(Nixl()) == {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_consumer",
        "kv_load_failure_policy": "recompute",
    }


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_handoff_through_the_cache_is_the_sidecar_on_both_sides(role: roles.Role) -> None:
    server = CacheServer()

    config = roles.kv_transfer_config(role, server, Nixl(), handoff="cache")

    assert config == roles.aggregated(server)


def test_fallback_has_no_connector() -> None:
    assert roles.kv_transfer_config("fallback", CacheServer(), Nixl()) is None


def test_unix_socket_host_is_passed_on() -> None:
    extra = roles.aggregated(CacheServer(host="ipc:///run/kv"))["kv_connector_extra_config"]

    assert f"{extra['lmcache.mp.host']}:{extra['lmcache.mp.port']}" == "ipc:///run/kv:5555"


def test_several_servers_take_the_place_of_host_and_port() -> None:
    urls = ("tcp://a:5555", "ipc:///run/kv/b")
    extra = roles.aggregated(CacheServer(urls=urls))["kv_connector_extra_config"]

    assert extra["lmcache.mp.server_urls"] == list(urls)
    assert "lmcache.mp.host" not in extra


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": "localhost"}, "localhost"),
        ({"urls": ("tcp://a:1", "grpc://b:1")}, "grpc://b:1"),
        ({"port": 0}, "0 is not a port"),
        ({"transfer_mode": "magic"}, "magic"),
        ({"timeout_seconds": 0}, "timeout"),
        ({"heartbeat_seconds": -1}, "heartbeat"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConnectorError, match=said):
        CacheServer(**options)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: lmcache_v1.in_process(disk="/data"), "size"),
        (lambda: lmcache_v1.shared("host:1"), "scheme"),
        (
            lambda: lmcache_v1.consumer(
                host="h", init_ports=[1, 2], alloc_ports=[3], buffer_bytes=1
            ),
            "each TP rank",
        ),
    ],
)
def test_lmcache_settings_that_cannot_work_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ConnectorError, match=said):
        make()


def test_imports_nothing_outside_the_standard_library() -> None:
    program = (
        "import sys, connectors.cli, connectors.lmcache_config;"
        "known = sys.stdlib_module_names | {'connectors'};"
        "print([n for n in sys.modules if n.split('.')[0] not in known])"
    )
    isolated = subprocess.run(
        [sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True
    )

    assert isolated.stdout.strip() == "['__main__']"


@pytest.mark.parametrize("host", ["tcp://::1", "tcp://[::1]", "tcp://fd00::7"])
def test_an_ipv6_address_stands_in_brackets(host: str) -> None:
    server = CacheServer(host=host)
    extra = roles.aggregated(server)["kv_connector_extra_config"]
    bracketed = host if "[" in host else f"tcp://[{host.removeprefix('tcp://')}]"
    assert extra["lmcache.mp.host"] == bracketed
    assert server.ipv6_addresses == [bracketed]


def test_an_ipv6_address_without_brackets_has_no_port() -> None:
    with pytest.raises(ConnectorError, match="stands in brackets, not tcp://::1:5555"):
        CacheServer(urls=("tcp://[::1]:5555", "tcp://::1:5555"))
    with pytest.raises(ConnectorError, match=r"give one address"):
        CacheServer(host="tcp://*")
    assert CacheServer(urls=("tcp://a:1", "tcp://[::1]:1")).ipv6_addresses == ["tcp://[::1]:1"]


def test_the_stock_client_opens_no_ipv6_socket() -> None:
    """Where it does, the warning about `ipv6_addresses` can go."""
    mq = pytest.importorskip("lmcache.v1.multiprocess.transport.zmq_impl.mq", exc_type=ImportError)
    source = inspect.getsource(mq.MessageQueueClient.__init__)
    assert ".connect(server_url)" in source and "IPV6" not in source.upper()
