"""LMCacheConnectorV1: LMCache inside the worker, for users who stay with that path.

It does not talk to the sidecar. Its settings are a file that `LMCACHE_CONFIG_FILE` names; key
names and what they require are those of lmcache 0.5.6 (`lmcache/v1/config.py` and
`storage_backend/pd_backend_async.py`).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from connectors.errors import ConnectorError

NAME = "LMCacheConnectorV1"
Settings = dict[str, Any]


def kv_transfer_config(
    kv_role: Literal["kv_both", "kv_producer", "kv_consumer"] = "kv_both",
) -> dict[str, Any]:
    """vLLM's side of it; a consumer stores nothing."""
    return {"kv_connector": NAME, "kv_role": kv_role, "kv_load_failure_policy": "recompute"}


def in_process(*, cpu_gb: float = 5.0, disk: str = "", disk_gb: float = 0.0) -> Settings:
    """A cache in each worker rank's own memory, and in the directory `disk`; sizes in GiB.

    Raises ConnectorError where a disk has no size.
    """
    settings: Settings = {"chunk_size": 256, "local_cpu": True, "max_local_cpu_size": cpu_gb}
    if disk:
        if disk_gb <= 0:
            raise ConnectorError("a disk cache needs its size: disk_gb")
        settings |= {"local_disk": f"file://{disk}", "max_local_disk_size": disk_gb}
    return settings


def shared(url: str, *, cpu_gb: float = 5.0) -> Settings:
    """`in_process` in front of a server that several workers share.

    `url` is a scheme that LMCache has a connector for: `lm://host:port` (LMCache's old server),
    `redis://host:port`, `mooncakestore://host:port`, `fs:///path` and others. All workers need
    one PYTHONHASHSEED, because keys are hashes of Python's.

    Raises ConnectorError where `url` has no scheme.
    """
    if "://" not in url:
        raise ConnectorError(f"the server's URL has a scheme, such as lm://; {url!r} has none")
    return in_process(cpu_gb=cpu_gb) | {"remote_url": url, "remote_serde": "naive"}


def producer(
    *,
    proxy_host: str,
    proxy_port: int,
    buffer_bytes: int,
    buffer_device: str = "cuda",
    nixl_backends: Sequence[str] = ("UCX",),
) -> Settings:
    """The prefill side of LMCache's own transfer; it tells the proxy what has arrived."""
    return _transfer("sender", buffer_bytes, buffer_device, nixl_backends) | {
        "pd_proxy_host": proxy_host,
        "pd_proxy_port": proxy_port,
    }


def consumer(
    *,
    host: str,
    init_ports: Sequence[int],
    alloc_ports: Sequence[int],
    buffer_bytes: int,
    buffer_device: str = "cuda",
    nixl_backends: Sequence[str] = ("UCX",),
) -> Settings:
    """The decode side; it listens on `host` with one port of each kind for each TP rank.

    Raises ConnectorError where the two lists do not match.
    """
    if not init_ports or len(init_ports) != len(alloc_ports):
        raise ConnectorError("a consumer needs an init port and an alloc port for each TP rank")
    return _transfer("receiver", buffer_bytes, buffer_device, nixl_backends) | {
        "pd_peer_host": host,
        "pd_peer_init_port": list(init_ports),
        "pd_peer_alloc_port": list(alloc_ports),
    }


def config_file(settings: Mapping[str, Any]) -> str:
    """The text of the file that `LMCACHE_CONFIG_FILE` names."""
    # JSON values are YAML values, and need no YAML library.
    return "".join(f"{key}: {json.dumps(value)}\n" for key, value in settings.items())


def _transfer(
    role: str, buffer_bytes: int, buffer_device: str, nixl_backends: Sequence[str]
) -> Settings:
    return {
        "chunk_size": 256,
        "local_cpu": False,
        "enable_pd": True,
        "pd_role": role,
        "pd_buffer_size": buffer_bytes,
        "pd_buffer_device": buffer_device,
        "transfer_channel": "nixl",
        "nixl_backends": list(nixl_backends),
        # Without its last chunk a prompt would arrive incomplete.
        "save_unfull_chunk": True,
    }
