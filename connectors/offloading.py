"""vLLM's own OffloadingConnector, with the sidecar behind it: the other client beside lmcache's."""

from dataclasses import dataclass
from typing import Any

from connectors.errors import ConnectorError
from connectors.lmcache_mp import CacheServer, bracketed
from connectors.native.settings import BUDGET, MOST_BUDGET_MS, URL, Settings

NAME = "OffloadingConnector"
SPEC, MODULE = "SidecarOffloadingSpec", "connectors.native.spec"
CONNECTOR_MODULE = "connectors.native.connector"
DESCRIBING = "self_describing_kv_events"


@dataclass(frozen=True, kw_only=True)
class NativeServer:
    """Where a worker's OffloadingConnector finds its sidecar.

    `host` and `port` are as in CacheServer. A request waits at most `budget_ms` until it is known
    what of its prompt is cached, loads from L2 included. A chunk, what is stored and found as
    one, is so many of vLLM's blocks. Raises ConnectorError where a value cannot work.
    """

    host: str = "tcp://127.0.0.1"
    port: int = 5555
    budget_ms: int = Settings.budget_ms
    blocks_per_chunk: int = 1

    def __post_init__(self) -> None:
        # What is no address of a sidecar is none for either client.
        CacheServer(host=self.host, port=self.port)
        if not 0 < self.budget_ms <= MOST_BUDGET_MS:
            raise ConnectorError(
                f"a budget of {self.budget_ms} ms is not within 1 and {MOST_BUDGET_MS}"
            )
        if self.blocks_per_chunk < 1:
            raise ConnectorError("a chunk has at least one block")


def kv_transfer_config(server: NativeServer) -> dict[str, Any]:
    """The config of a worker that stores its KV in the sidecar and loads it from there."""
    return {
        "kv_connector": NAME,
        # vLLM's own class, with KV events of all that the sidecar has.
        "kv_connector_module_path": CONNECTOR_MODULE,
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "spec_name": SPEC,
            "spec_module_path": MODULE,
            "blocks_per_chunk": server.blocks_per_chunk,
            # Nothing is described unless the worker publishes KV events.
            DESCRIBING: True,
            URL: f"{bracketed(server.host)}:{server.port}",
            BUDGET: server.budget_ms,
        },
    }
