"""Our configurations in the hands of the real vLLM, LMCache and Dynamo."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
pytest.importorskip("vllm", reason="needs vLLM: scripts/install.py engine")
pytest.importorskip("lmcache", reason="needs LMCache: scripts/install.py engine")

from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector

from connectors import lmcache_v1, offloading, roles
from connectors.lmcache_mp import CacheServer
from connectors.nixl import Nixl
from connectors.offloading import NativeServer
from connectors.worker import DEFAULT_PORTS, Ports, Program, Worker, command, connectors_of

SERVER = CacheServer(heartbeat_seconds=3, timeout_seconds=7, transfer_mode="engine_driven")
NATIVE = NativeServer(port=5557, budget_ms=500, blocks_per_chunk=2)
NIXL = Nixl(buffer_device="cpu", backends=("UCX",))
CONFIGS: dict[str, dict[str, Any]] = {
    "aggregated": roles.aggregated(SERVER),
    "several servers": roles.aggregated(CacheServer(urls=("tcp://a:1", "tcp://b:1"))),
    "prefill": roles.prefill(SERVER, NIXL),
    "decode": roles.decode(NIXL),
    "native": roles.aggregated(NATIVE),
    "native prefill": roles.prefill(NATIVE, NIXL),
    "cache-mediated": roles.cache_mediated(SERVER),
    "lmcache in process": lmcache_v1.kv_transfer_config("kv_both"),
    "lmcache producer": lmcache_v1.kv_transfer_config("kv_producer"),
    "lmcache consumer": lmcache_v1.kv_transfer_config("kv_consumer"),
}
CLASSES = {
    "LMCacheMPConnector": "lmcache.integration.vllm.lmcache_mp_connector",
    "LMCacheConnectorV1": "vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector",
    "OffloadingConnector": offloading.CONNECTOR_MODULE,
    "MultiConnector": MultiConnector.__module__,
    "NixlConnector": "vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector",
}
SETTINGS = {
    "in process": lmcache_v1.in_process(cpu_gb=2, disk="/data", disk_gb=10),
    "shared": lmcache_v1.shared("lm://localhost:65432"),
    "producer": lmcache_v1.producer(proxy_host="proxy", proxy_port=7500, buffer_bytes=1 << 30),
    "consumer": lmcache_v1.consumer(
        host="decode", init_ports=[7300], alloc_ports=[7400], buffer_bytes=1 << 30
    ),
}


def vllm_config(config: dict[str, Any] | None) -> Any:
    """The part of vLLM's configuration that the connectors look at."""
    made = KVTransferConfig(**config) if config else None
    return SimpleNamespace(kv_transfer_config=made)


def worker(role: roles.Role, program: Program, handoff: roles.Handoff = "nixl") -> Worker:
    return Worker(
        model="some/model",
        role=role,
        config=roles.kv_transfer_config(role, SERVER, NIXL, handoff),
        program=program,
        ports=Ports(system=8081, side_channel=5600, kv_events=20081),
        nixl=NIXL,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_vllm_takes_it_and_loads_the_class(name: str) -> None:
    config = KVTransferConfig(**CONFIGS[name])

    assert config.is_kv_transfer_instance
    assert config.kv_load_failure_policy == "recompute"
    found = KVConnectorFactory.get_connector_class(config)
    assert found.__module__ == CLASSES[CONFIGS[name]["kv_connector"]]


def test_multi_connector_finds_its_children_in_order() -> None:
    found = MultiConnector._get_connector_classes_and_configs(vllm_config(CONFIGS["prefill"]))

    assert [cls.__module__ for cls, _ in found] == [
        CLASSES["LMCacheMPConnector"],
        CLASSES["NixlConnector"],
    ]
    (cache, nixl) = [child.kv_transfer_config for _, child in found]
    assert cache.is_kv_producer and cache.is_kv_consumer
    assert nixl.is_kv_producer and not nixl.is_kv_consumer
    assert nixl.kv_buffer_device == "cpu"


@pytest.mark.parametrize("name", CONFIGS)
def test_hybrid_kv_cache_manager_is_disabled_where_the_connector_cannot_use_it(name: str) -> None:
    made = Worker(
        model="m",
        role="aggregated",
        config=CONFIGS[name],
        program="vllm",
        ports=DEFAULT_PORTS["aggregated"],
        nixl=NIXL,
    )
    capable = KVConnectorFactory.supports_hma_config(KVTransferConfig(**CONFIGS[name]))

    assert ("--disable-hybrid-kv-cache-manager" in command(made).argv) == (not capable)


@pytest.mark.parametrize("name", ["native", "native prefill"])
def test_vllm_loads_our_backend(name: str) -> None:
    from vllm.v1.kv_offload.factory import OffloadingSpecFactory

    from connectors.native.settings import Settings

    extra = connectors_of(CONFIGS[name])[offloading.NAME]

    found = OffloadingSpecFactory.get_spec_cls(extra)

    assert (found.__module__, found.__name__) == (offloading.MODULE, offloading.SPEC)
    assert Settings.read(extra) == Settings(url="tcp://127.0.0.1:5557", budget_ms=500)


def test_the_client_reads_every_option() -> None:
    adapter = pytest.importorskip("lmcache.integration.vllm.vllm_multi_process_adapter")
    extra = CONFIGS["aggregated"]["kv_connector_extra_config"]

    resolved = adapter._resolve_extra_config(extra)

    assert resolved["heartbeat_interval"] == 3
    assert resolved["mq_timeout"] == 7
    assert resolved["mp_transfer_mode"] == "engine_driven"
    addresses = {"lmcache.mp.host", "lmcache.mp.port"}
    assert {f"lmcache.mp.{key}" for key in resolved} >= set(extra) - addresses


@pytest.mark.parametrize("name", SETTINGS)
def test_lmcache_takes_its_file(name: str, tmp_path: Path) -> None:
    lmcache_config = pytest.importorskip("lmcache.v1.config")
    path = tmp_path / "lmcache.yaml"
    path.write_text(lmcache_v1.config_file(SETTINGS[name]))

    loaded = lmcache_config.LMCacheEngineConfig.from_file(str(path))
    loaded.validate()

    assert set(SETTINGS[name]) <= set(lmcache_config._CONFIG_DEFINITIONS)
    assert loaded.nixl_backends == SETTINGS[name].get("nixl_backends")
    assert loaded.chunk_size == 256


@pytest.mark.parametrize("role", ["aggregated", "prefill", "decode", "fallback"])
def test_vllm_serve_parses_the_arguments(role: roles.Role) -> None:
    cli_args = pytest.importorskip(
        "vllm.entrypoints.launchers.cli_args", reason="an older vLLM has its parser elsewhere"
    )
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    program, serve, *arguments = command(worker(role, "vllm")).argv
    parsed = cli_args.make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)

    assert (program, serve, parsed.model_tag) == ("vllm", "serve", "some/model")
    assert (parsed.kv_transfer_config is None) == (role == "fallback")
    assert parsed.kv_events_config.endpoint == "tcp://*:20081"


DYNAMO = "needs Dynamo: pip install --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1"


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("prefill", "NixlConnectorProtocol"),
        ("decode", "NixlConnectorProtocol"),
        ("native prefill", "NixlConnectorProtocol"),
        ("cache-mediated", "LMCacheMPConnectorProtocol"),
    ],
)
def test_dynamo_picks_the_protocol(name: str, protocol: str) -> None:
    protocols = pytest.importorskip("dynamo.vllm.kv_connector_protocols", reason=DYNAMO)

    picked = protocols.make_kv_connector_protocol(vllm_config(CONFIGS[name]))

    assert type(picked).__name__ == protocol


@pytest.mark.parametrize(
    ("name", "connector"),
    [("lmcache producer", "LMCacheConnectorV1"), ("native", "OffloadingConnector")],
)
def test_dynamo_has_no_protocol_for_what_we_refuse(name: str, connector: str) -> None:
    protocols = pytest.importorskip("dynamo.vllm.kv_connector_protocols", reason=DYNAMO)

    with pytest.raises(ValueError, match=connector):
        protocols.make_kv_connector_protocol(vllm_config(CONFIGS[name]))


@pytest.mark.parametrize("handoff", ["nixl", "cache"])
@pytest.mark.parametrize("role", ["aggregated", "prefill", "decode", "fallback"])
def test_dynamo_parses_the_arguments(
    role: roles.Role, handoff: roles.Handoff, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = pytest.importorskip("dynamo.vllm.args", reason=DYNAMO, exc_type=ImportError)
    made = command(worker(role, "dynamo", handoff))
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)

    parsed = args.parse_args(list(made.argv[3:]))

    assert made.argv[1:3] == ("-m", "dynamo.vllm")
    assert parsed.model == "some/model"
    assert parsed.disaggregation_mode.value == (role if role in ("prefill", "decode") else "agg")
    assert (parsed.engine_args.kv_transfer_config is None) == (role == "fallback")
    assert args.create_kv_events_config(parsed.engine_args).endpoint == "tcp://*:20081"
