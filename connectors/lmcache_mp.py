"""vLLM's `--kv-transfer-config` for the stock LMCacheMPConnector."""

from typing import Any, Literal

TransferMode = Literal["auto", "engine_driven", "lmcache_driven"]


def kv_transfer_config(
    port: int,
    *,
    host: str = "tcp://127.0.0.1",
    transfer_mode: TransferMode = "auto",
    heartbeat_seconds: float = 10.0,
    timeout_seconds: float = 60.0,
) -> dict[str, Any]:
    """The config of an aggregated worker, which both stores and loads its KV.

    `host` is what the client prepends to `:port`: `tcp://NAME`, or `ipc:///PATH` for the Unix
    socket `/PATH:port`. `engine_driven` has the worker copy its KV, `lmcache_driven` the sidecar;
    `auto` leaves it to the worker's device. A worker notices a dead sidecar, and its return,
    within `heartbeat_seconds`.

    What waits for an answer when the sidecar dies stands still until a new sidecar answers or
    `timeout_seconds` have passed. Then the client goes on without the cache, but for the store of
    an engine-driven worker: there it raises, and vLLM ends. vLLM also ends when a step takes
    300 s, the client's own default, and one step may meet the timeout twice.

    Raises ValueError where `host` names no transport.
    """
    if not host.startswith(("tcp://", "ipc://")):
        raise ValueError(f"host must begin with tcp:// or ipc://, not {host!r}")
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_role": "kv_both",
        # vLLM's default fails the request whose KV did not arrive.
        "kv_load_failure_policy": "recompute",
        "kv_connector_module_path": "lmcache.integration.vllm.lmcache_mp_connector",
        "kv_connector_extra_config": {
            "lmcache.mp.host": host,
            "lmcache.mp.port": port,
            "lmcache.mp.mp_transfer_mode": transfer_mode,
            "lmcache.mp.heartbeat_interval": heartbeat_seconds,
            "lmcache.mp.mq_timeout": timeout_seconds,
        },
    }
