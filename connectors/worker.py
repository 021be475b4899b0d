"""The complete command of a worker: program, arguments and environment for a role."""

import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from connectors import lmcache_mp, lmcache_v1, nixl, offloading
from connectors.arguments import Argument, compact, is_off, merge, option, split
from connectors.errors import ConnectorError
from connectors.nixl import Nixl
from connectors.roles import Role
from connectors.versions import Need

Program = Literal["dynamo", "vllm"]


@dataclass(frozen=True, kw_only=True)
class Ports:
    """What a worker listens on, beside vLLM's own HTTP port; one port for each rank upwards.

    `system` is Dynamo's health and metrics port, `side_channel` that of NIXL's handshake (vLLM's
    default is 5600 for everyone), `kv_events` where Dynamo's router learns what this worker
    holds; None publishes nothing.
    """

    system: int
    side_channel: int
    kv_events: int | None = None


# A pair on one machine does not clash.
DEFAULT_PORTS: dict[Role, Ports] = {
    "aggregated": Ports(system=8081, side_channel=5600),
    "decode": Ports(system=8081, side_channel=5600),
    "prefill": Ports(system=8082, side_channel=5620),
    "fallback": Ports(system=8081, side_channel=5600),
}


@dataclass(frozen=True, kw_only=True)
class Worker:
    """A worker to start.

    `side_channel_host` is this worker's address as its peers see it. `prefix_caching=False` is
    for measurements: without vLLM's own prefix cache each hit is the sidecar's. `lmcache_config`
    is the file for LMCacheConnectorV1. `python` is the interpreter that has Dynamo.

    Raises ConnectorError for KV events without prefix caching: Dynamo then publishes none
    (`create_kv_events_config` in `dynamo/vllm/args.py`, 1.6.1); and for a topic without events.
    """

    model: str
    role: Role
    config: dict[str, Any] | None
    program: Program
    ports: Ports
    nixl: Nixl
    side_channel_host: str = "127.0.0.1"
    prefix_caching: bool = True
    lmcache_config: str = ""
    python: str = "python3"
    # Dynamo's reader takes what a worker's port has; llm-d's finds pod and model in the topic.
    kv_events_topic: str = ""

    def __post_init__(self) -> None:
        if self.kv_events_topic and not self.ports.kv_events:
            raise ConnectorError("--kv-events-topic is for --kv-events-port")
        if self.ports.kv_events and not self.prefix_caching:
            raise ConnectorError("a worker without prefix caching publishes no KV events")
        if self.program == "dynamo" and self.role in ("prefill", "decode"):
            _check_protocol(connectors_of(self.config))


@dataclass(frozen=True)
class Command:
    """What to run, with which variables set and which removed, and what the user overrode."""

    program: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: dict[str, str]
    unset: tuple[str, ...]
    conflicts: tuple[str, ...]

    @property
    def argv(self) -> tuple[str, ...]:
        return (*self.program, *self.arguments)

    def shell(self) -> str:
        """One line for a POSIX shell's `eval`."""
        removed = [word for name in self.unset for word in ("-u", name)]
        assigned = [f"{name}={value}" for name, value in self.environment.items()]
        return shlex.join(["env", *removed, *assigned, *self.argv])


def command(worker: Worker, user_arguments: Sequence[str] = ()) -> Command:
    """The command of `worker`; where `user_arguments` give an option too, theirs holds.

    Raises ConnectorError for an argument that no supported Dynamo accepts.
    """
    for argument in split(user_arguments):
        if worker.program == "dynamo" and argument.name == "--connector":
            raise ConnectorError("Dynamo rejects --connector since 1.0: use --kv-transfer-config")
    merged = merge(_arguments(worker), user_arguments)
    return Command(
        _program(worker),
        merged.tokens,
        _environment(worker),
        _unset(worker),
        (*merged.conflicts, *_contradictions(worker, merged.tokens)),
    )


def connectors_of(config: dict[str, Any] | None) -> dict[str, dict[str, Any]]:
    """The connectors in a `kv_transfer_config`, without the wrapper: extra config by name."""
    if config is None:
        return {}
    children = config.get("kv_connector_extra_config", {}).get("connectors", [config])
    return {child["kv_connector"]: child.get("kv_connector_extra_config", {}) for child in children}


def needs(config: dict[str, Any] | None, program: Program | None, role: Role) -> set[Need]:
    """What the worker's environment must be able to do; no program leaves Dynamo out."""
    names = connectors_of(config)
    settings = names.get(lmcache_mp.NAME, {})
    one_of_a_pair = program == "dynamo" and role in ("prefill", "decode")
    found: dict[Need, bool] = {
        "the sidecar's client": lmcache_mp.NAME in names,
        "a choice of the transfer mode": settings.get(lmcache_mp.TRANSFER_MODE, "auto") != "auto",
        "a worker with several sidecars": bool(settings.get(lmcache_mp.SERVER_URLS)),
        "vLLM's own offloading connector": offloading.NAME in names,
        "LMCacheConnectorV1": lmcache_v1.NAME in names,
        "a transfer over NIXL": nixl.NAME in names,
        "a Dynamo worker": program == "dynamo",
        "Dynamo with a handoff through the cache": one_of_a_pair and [*names] == [lmcache_mp.NAME],
    }
    return {need for need, needed in found.items() if needed}


def _check_protocol(names: Collection[str]) -> None:
    if lmcache_v1.NAME in names:
        raise ConnectorError(
            "Dynamo has no prefill and decode protocol for LMCacheConnectorV1: run it with "
            "vLLM and LMCache's own proxy"
        )

    if [*names] == [offloading.NAME]:
        raise ConnectorError(
            "Dynamo has no prefill and decode protocol for a lone OffloadingConnector: use "
            "--handoff nixl"
        )


def _program(worker: Worker) -> tuple[str, ...]:
    if worker.program == "dynamo":
        return (worker.python, "-m", "dynamo.vllm")
    return ("vllm", "serve")


def _arguments(worker: Worker) -> list[Argument]:
    dynamo = worker.program == "dynamo"
    # `vllm serve` takes the model by place.
    model = ("--model", worker.model) if dynamo else (worker.model,)
    arguments = [Argument("--model", model)]
    if dynamo and worker.role in ("prefill", "decode"):
        arguments.append(option("--disaggregation-mode", worker.role))
    if worker.config is not None:
        arguments.append(option("--kv-transfer-config", compact(worker.config)))
    if worker.ports.kv_events:
        events = _kv_events(worker.ports.kv_events, worker.kv_events_topic)
        arguments.append(option("--kv-events-config", compact(events)))
    if not worker.prefix_caching:
        arguments.append(option("--no-enable-prefix-caching"))
    if lmcache_v1.NAME in connectors_of(worker.config):
        # The others can do with several KV groups. vLLM would turn them off for this one by
        # itself, but not where the user turns them on.
        arguments.append(option("--disable-hybrid-kv-cache-manager"))
    return arguments


def _contradictions(worker: Worker, tokens: Sequence[str]) -> Iterator[str]:
    """What the user's arguments spoil without taking the place of one of ours."""
    given = {argument.name: argument for argument in split(tokens)}
    caching = given.get("--enable-prefix-caching")
    if worker.ports.kv_events and caching and is_off(caching.tokens[0]):
        yield f"{caching.tokens[0]}: a worker without prefix caching publishes no KV events"
    mode = given.get("--disaggregation-mode")
    if worker.role in ("aggregated", "fallback") and mode and mode.value != "agg":
        yield f"{shlex.join(mode.tokens)} is another role than {worker.role}: use --role"


def _kv_events(port: int, topic: str) -> dict[str, Any]:
    return {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "topic": topic or "kv-events",
        # vLLM binds an address with a *, and connects to any other.
        "endpoint": f"tcp://*:{port}",
    }


def _environment(worker: Worker) -> dict[str, str]:
    # One seed for all: the keys of LMCacheConnectorV1 are hashes of Python's. So are vLLM's block
    # hashes, in KV events and as the keys of its own connector, before vLLM had a fixed seed of its
    # own, and with a hash algorithm that is not a cryptographic one.
    environment = {"PYTHONHASHSEED": "0"}
    if worker.program == "dynamo":
        environment["DYN_SYSTEM_PORT"] = str(worker.ports.system)
    if nixl.NAME in connectors_of(worker.config):
        # Dynamo finds the host by itself for a lone NixlConnector, not in a MultiConnector.
        environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] = worker.side_channel_host
        environment["VLLM_NIXL_SIDE_CHANNEL_PORT"] = str(worker.ports.side_channel)
        environment |= worker.nixl.environment
    if worker.lmcache_config:
        environment["LMCACHE_CONFIG_FILE"] = worker.lmcache_config
    return environment


def _unset(worker: Worker) -> tuple[str, ...]:
    # A folder inherited from another worker mixes the two workers' metrics.
    names: tuple[str, ...] = ("PROMETHEUS_MULTIPROC_DIR",)
    if worker.program == "dynamo":
        # The first is rejected wherever it is set; the second would change the role.
        names += ("DYN_CONNECTOR", "DYN_VLLM_DISAGGREGATION_MODE")
    return names
