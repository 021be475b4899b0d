"""The manifests and the compose file against the programs that they start."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from connectors import roles
from connectors.lmcache_mp import CacheServer
from connectors.nixl import Nixl
from connectors.offloading import NativeServer
from connectors.roles import Role, Server
from connectors.worker import DEFAULT_PORTS, Command, Program, Worker, command
from k8s.render import OVERLAYS, pods
from sidecar.app import wire_url
from sidecar.config import Loaded, load
from tests.support.manifests import (
    CACHED,
    NATIVE,
    SERVERS,
    argv,
    container,
    containers,
    documents,
    environment,
    of_kind,
    pod,
    server,
)

ROOT = Path(__file__).parents[2]
IN_POD = CacheServer(host="ipc:///run/kv-sidecar/mp")
ON_NODE = CacheServer(host="tcp://kv-cache")
NATIVE_IN_POD = NativeServer(host=IN_POD.host)
NATIVE_ON_NODE = NativeServer(host=ON_NODE.host)
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
# Of the container runtime, not of the program.
FOREIGN = {"NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES"}
WORKERS: list[tuple[str, str, Role, Program, Server]] = [
    ("vllm-sidecar", "vllm-worker", "aggregated", "vllm", IN_POD),
    ("vllm-sidecar-persistent", "vllm-worker", "aggregated", "vllm", IN_POD),
    ("vllm-node", "vllm-worker", "aggregated", "vllm", ON_NODE),
    ("dynamo-agg", "worker", "aggregated", "dynamo", IN_POD),
    ("dynamo-disagg", "prefill", "prefill", "dynamo", IN_POD),
    ("dynamo-disagg", "decode", "decode", "dynamo", IN_POD),
    ("vllm-sidecar-native", "vllm-worker", "aggregated", "vllm", NATIVE_IN_POD),
    ("vllm-node-native", "vllm-worker", "aggregated", "vllm", NATIVE_ON_NODE),
    ("dynamo-agg-native", "worker", "aggregated", "dynamo", NATIVE_IN_POD),
    ("dynamo-disagg-native", "prefill", "prefill", "dynamo", NATIVE_IN_POD),
    ("dynamo-disagg-native", "decode", "decode", "dynamo", NATIVE_IN_POD),
]


def loaded(overlay: str) -> Loaded:
    """The configuration that the rendered container's server runs with."""
    subcommand, *flags = argv(overlay, server(overlay))
    assert subcommand == "serve"
    return load(flags, environment(overlay, server(overlay)))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_knows_every_flag_and_variable(overlay: str) -> None:
    found = loaded(overlay)

    assert found.warnings == []
    variables = {name for name in environment(overlay, server(overlay)) if name not in FOREIGN}
    assert variables == {
        source.removeprefix("env ")
        for source in found.sources.values()
        if source.startswith("env ")
    }
    assert found.config.l1_size_gb >= 1 and len(found.config.l2_adapter) == 1


def test_the_container_is_the_same_in_every_pod() -> None:
    """So test_server.py starts only one of them. What a native worker's has not is not ours."""
    first, *others = [{**server(overlay), "resources": {}} for overlay in CACHED]
    first["env"] = [entry for entry in first["env"] if entry["name"] not in FOREIGN]
    for overlay, other in zip([*CACHED][1:], others, strict=True):
        left = [entry for entry in other["env"] if entry["name"] not in FOREIGN]
        assert (left == other["env"]) == (overlay in NATIVE)
        assert {**other, "env": left} == first


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_ports_and_paths_are_those_of_the_server(overlay: str) -> None:
    config = loaded(overlay).config
    ports = {port["name"]: port["containerPort"] for port in server(overlay)["ports"]}
    mounts = {mount["mountPath"] for mount in server(overlay)["volumeMounts"]}

    assert ports["kv-metrics"] == config.prometheus_port
    assert config.prometheus_host == "*"
    # Whoever reaches it can empty the cache.
    assert config.http_host == "127.0.0.1"
    assert "/dev/shm" in mounts
    (adapter,) = config.l2_adapter
    assert str(Path(adapter.settings.base_path).parent) in mounts  # type: ignore[attr-defined]
    if overlay in CACHED:
        assert wire_url(config) == f"{IN_POD.host}:{IN_POD.port}"
        assert str(Path(IN_POD.host.removeprefix("ipc://")).parent) in mounts
    else:
        assert (config.host, config.port) == ("*", ports["kv-mp"])
        (service,) = [
            each for each in of_kind(overlay, "Service") if each["metadata"]["name"] == "kv-cache"
        ]
        assert [port["port"] for port in service["spec"]["ports"]] == [ON_NODE.port]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_l1_outlives_a_container_but_not_what_it_belongs_to(overlay: str) -> None:
    """In a pod it goes with the pod's memory; on a node nobody would remove it."""
    config = loaded(overlay).config
    assert (config.l1_keep_seconds > 0) == (overlay in CACHED)
    assert config.shm_name == "kv-sidecar" or overlay not in CACHED


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_cache_stays_away_from_the_ports_of_its_pod(overlay: str) -> None:
    """Of vLLM, of Dynamo's operator (system, nixl and the 7 after it, frontend, EPP), of NIXL."""
    others = {8000, 9002, 9090, *range(19090, 19098), 5600, 5620}
    config = loaded(overlay).config
    assert not {config.port, config.http_port, config.prometheus_port} & others


def expected(role: Role, program: Program, cache: Server, model: str) -> Command:
    config = roles.kv_transfer_config(role, cache, Nixl())
    return command(
        Worker(
            model=model,
            role=role,
            config=config,
            program=program,
            ports=DEFAULT_PORTS[role],
            nixl=Nixl(),
            side_channel_host="10.0.0.7",
        )
    )


def parsed(words: list[str]) -> list[Any]:
    """JSON compares by its content."""
    return [json.loads(word) if word.lstrip().startswith("{") else word for word in words]


@pytest.mark.parametrize(("overlay", "name", "role", "program", "cache"), WORKERS)
def test_a_worker_is_started_as_connectors_would(
    overlay: str, name: str, role: Role, program: Program, cache: Server
) -> None:
    main = container(pod(overlay, name), "main")
    variables = environment(overlay, main)
    wanted = expected(role, program, cache, variables["MODEL"])

    assert parsed(argv(overlay, main)) == parsed(list(wanted.argv))
    # Dynamo's operator gives the port of its own probes.
    ours = {k: v for k, v in wanted.environment.items() if k != "DYN_SYSTEM_PORT"}
    assert ours.items() <= variables.items()
    own = {"MODEL", "KV_TRANSFER_CONFIG", "USER", "HOME", "PYTHONPATH"}
    assert set(variables) - own == set(ours)


def test_every_worker_was_compared() -> None:
    found = {
        (overlay, each["metadata"]["name"])
        for overlay in OVERLAYS
        for each in pods(documents(overlay))
        if each["metadata"]["name"] not in ("frontend", "kv-cache")
    }
    assert found == {(overlay, name) for overlay, name, *_ in WORKERS}


@pytest.mark.parametrize(
    ("overlay", "cache"), [("vllm-node", ON_NODE), ("vllm-node-native", NATIVE_ON_NODE)]
)
@pytest.mark.parametrize("role", ["aggregated", "prefill", "decode"])
def test_the_ready_made_config_is_what_connectors_makes(
    overlay: str, cache: Server, role: Role
) -> None:
    (config_map,) = of_kind(overlay, "ConfigMap")

    assert config_map["metadata"]["name"] == "kv-transfer-config"
    assert json.loads(config_map["data"][role]) == roles.kv_transfer_config(role, cache, Nixl())


def test_manifests_need_no_shell() -> None:
    """So there is no quoting to get wrong, and signals reach the programs."""
    for overlay in OVERLAYS:
        for each in pods(documents(overlay)):
            for one in containers(each):
                assert "sh" not in argv(overlay, one) and "bash" not in argv(overlay, one)


def defaults(text: str) -> str:
    """What compose makes of `${NAME:-value}` in an empty environment."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def test_the_compose_file_starts_the_server() -> None:
    service = COMPOSE["kv-sidecar"]
    variables = {name: defaults(value) for name, value in service["environment"].items()}
    found = load(service["command"][1:], variables)

    assert service["command"][0] == "serve"
    assert found.warnings == []
    assert wire_url(found.config) == f"{IN_POD.host}:{IN_POD.port}"
    assert service["ports"] == [f"127.0.0.1:{found.config.prometheus_port}:9464"]
    mounts = {volume.split(":", 1)[1] for volume in service["volumes"]}
    assert mounts == {"/dev/shm", "/run/kv-sidecar", "/var/lib/kv-sidecar"}


def test_the_compose_file_starts_the_worker() -> None:
    service = COMPOSE["vllm"]
    words = [*service["entrypoint"], *map(defaults, service["command"])]
    wanted = expected("aggregated", "vllm", IN_POD, "Qwen/Qwen3-0.6B")

    assert parsed(words) == parsed(list(wanted.argv))
    assert wanted.environment.items() <= service["environment"].items()
    shared = {"shm:/dev/shm", "socket:/run/kv-sidecar"}
    assert shared <= set(service["volumes"]) and shared <= set(COMPOSE["kv-sidecar"]["volumes"])


def test_the_servers_are_all_of_them() -> None:
    carriers = [
        (overlay, each["metadata"]["name"])
        for overlay in OVERLAYS
        for each in pods(documents(overlay))
        if any(one["name"] == "kv-sidecar" for one in containers(each))
    ]
    assert carriers == [(overlay, SERVERS[overlay]) for overlay in OVERLAYS]
