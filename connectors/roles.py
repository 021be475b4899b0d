"""What a worker does, and the `kv_transfer_config` that makes it do so."""

from typing import Any, Literal

from connectors import lmcache_mp, nixl, offloading
from connectors.lmcache_mp import CacheServer
from connectors.nixl import Nixl
from connectors.offloading import NativeServer

# A worker's client of the sidecar: lmcache's, or vLLM's own.
Server = CacheServer | NativeServer
Client = Literal["lmcache", "native"]
Role = Literal["aggregated", "prefill", "decode", "fallback"]
Handoff = Literal["nixl", "cache"]


def aggregated(server: Server) -> dict[str, Any]:
    """A worker that does both phases and keeps its KV in the sidecar."""
    return _cache(server)


def prefill(server: Server, transfer: Nixl) -> dict[str, Any]:
    """Prefixes from the sidecar, the finished prompt to a decode worker over NIXL.

    vLLM's MultiConnector loads from the first child that has something, so the sidecar is first;
    it stores to all. Dynamo lets the child that yields transfer parameters, Nixl, coordinate the
    two sides.
    """
    return {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        # vLLM reads the policy here and not in the children.
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "connectors": [
                _cache(server),
                nixl.kv_transfer_config("kv_producer", transfer),
            ]
        },
    }


def decode(transfer: Nixl) -> dict[str, Any]:
    """A worker that fetches prompts from a prefill worker, and has no cache of its own."""
    return nixl.kv_transfer_config("kv_consumer", transfer)


def cache_mediated(server: Server) -> dict[str, Any]:
    """Either side of a pair that meets in the sidecar: no transfer between the two.

    Decode looks the prompt up by its tokens and computes what it does not find, in any case the
    last chunk unless it is full. Both must have the same sidecar.
    """
    return _cache(server)


def kv_transfer_config(
    role: Role, server: Server, transfer: Nixl, handoff: Handoff = "nixl"
) -> dict[str, Any] | None:
    """The config of `role`; None for `fallback`, which is vLLM without any connector.

    `handoff` says how a prompt gets from prefill to decode.
    """
    if role == "fallback":
        return None
    if role == "aggregated":
        return aggregated(server)
    if handoff == "cache":
        return cache_mediated(server)
    return prefill(server, transfer) if role == "prefill" else decode(transfer)


def _cache(server: Server) -> dict[str, Any]:
    if isinstance(server, NativeServer):
        return offloading.kv_transfer_config(server)
    return lmcache_mp.kv_transfer_config(server)
