"""The one table of options: each field is a flag, a YAML key and an environment variable."""

import dataclasses
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sidecar.config import values
from sidecar.config.quotas import Quota
from sidecar.config.quotas import parse as parse_quotas

_PORT = values.integer(1, 65535)
_FREE_PORT = values.integer(0, 65535)
_SECONDS = values.number(0.001, 31_536_000)
_SECONDS_OR_OFF = values.number(0, 31_536_000)
_RATIO = values.number(0, 1)
# Those whose clients `wire/generations.py` has tables for.
RELEASES = (
    *("0.4.5", "0.4.6", "0.4.7"),
    *("0.5.0", "0.5.1", "0.5.2", "0.5.3", "0.5.4", "0.5.5", "0.5.6"),
)
# Those of `cache/policies`, which is not imported here: most commands have no use for it.
EVICTION_POLICIES = ("LRU", "ARC", "IsolatedLRU", "IsolatedARC", "noop")


@dataclass(frozen=True)
class Option:
    """What the loader and the help text need to know about one field of ``Config``."""

    parse: Callable[[str], Any]
    help: str
    group: str
    is_json: bool = False  # the flag may be repeated, a file may hold lists and mappings


# Sections of `GET /config`, and their titles in the help text and in docs/configuration.md.
GROUPS = {
    "mp": "The port that workers connect to, and transfers",
    "l1": "L1",
    "l2": "L2",
    "http": "Admin port",
    "observability": "Metrics, traces, log",
    "limits": "Limits on what clients may ask for",
}


def _option(
    group: str,
    parse: Callable[[str], Any],
    default: Any,
    help: str,
) -> Any:
    """A ``Config`` field; a callable ``default`` is called for each ``Config``."""
    metadata = {"option": Option(parse, help, group)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def _copy_threads() -> int:
    return min(4, len(os.sched_getaffinity(0)))


def _unique_id() -> str:
    return str(uuid.uuid4())


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything ``kv-sidecar serve`` can be told; sizes and times carry their unit in the name."""

    host: str = _option(
        "mp",
        values.wire_host,
        "localhost",
        "address of the ZMQ port, * for all, or ipc:///path: the Unix socket /path:PORT",
    )
    port: int = _option("mp", _PORT, 5555, "ZMQ port")
    ipc_mode: int = _option("mp", values.octal_mode, 0o600, "file mode of the Unix socket, octal")
    instance_id: str = _option(
        "mp", values.identifier, _unique_id, "name of this server in metrics; default a new UUID"
    )
    chunk_size: int = _option("mp", values.integer(1, 1_048_576), 256, "tokens per chunk")
    null_block_id: int = _option(
        "mp", values.integer(0, 2**31 - 1), 0, "block id that stands for absent KV data"
    )
    max_workers: int = _option(
        "mp", values.integer(1, 256), _copy_threads, "copy threads; default min(4, CPUs)"
    )
    gpu_batched_copies: Literal["auto", "true", "false"] = _option(
        "mp",
        values.switch,
        "auto",
        "batch copies to and from a GPU in one call: true, false, or auto: except where that is "
        "known to crash",
    )
    hash_algorithm: str = _option(
        "mp",
        values.choice(
            "blake3",
            refused=dict.fromkeys(
                ("builtin", "sha256_cbor"), "chunk hashes are blake3 here, clients never see them"
            ),
        ),
        "blake3",
        "hash of token chunks: blake3",
    )
    supported_transfer_mode: str = _option(
        "mp",
        values.choice("auto", "lmcache_driven", "engine_driven"),
        "auto",
        "who copies: lmcache_driven (the server), engine_driven (the worker) or auto (both)",
    )
    client_generation: str = _option(
        "mp",
        values.choice("auto", *RELEASES),
        "auto",
        "lmcache release of all clients; auto detects it for each connection",
    )
    client_ports: tuple[tuple[int, str], ...] = _option(
        "mp",
        values.ports_of(RELEASES),
        (),
        "additional ports, each for clients of one release: PORT=RELEASE,... (5556=0.5.2)",
    )
    shm_name: str = _option(
        "mp", values.shm_name, "", "name of the shared-memory arena; empty makes a unique one"
    )
    worker_reap_timeout_seconds: float = _option(
        "mp",
        _SECONDS_OR_OFF,
        120.0,
        "seconds of silence after which a worker that has sent heartbeats is dropped; 0 = never",
    )
    worker_registration_grace_seconds: float = _option(
        "mp",
        _SECONDS,
        3600.0,
        "seconds after which a disconnected worker is dropped; more than 30 count as 30",
    )
    l1_size_gb: float = field(
        metadata={"option": Option(values.size_gib, "size of L1 in GiB (required)", "l1")}
    )
    l1_transparent_hugepages: bool = _option(
        "l1",
        values.boolean,
        False,
        "transparent huge pages for L1: pinning it for GPUs is faster; the kernel must allow it",
    )
    l1_keep_seconds: float = _option(
        "l1",
        _SECONDS_OR_OFF,
        0.0,
        "seconds for which L1 is kept, when this server has ended, for the next one with this "
        "--shm-name; 0 = not at all",
    )
    l1_write_ttl_seconds: float = _option(
        "l1", _SECONDS, 600.0, "longest time a store may hold its reservation"
    )
    l1_read_ttl_seconds: float = _option(
        "l1", _SECONDS, 300.0, "longest time a lookup may hold its hits"
    )
    l1_protect_ratio: float = _option(
        "l1",
        values.number(0, 0.5),
        0.1,
        "share of L1 that may be protected from eviction over /cache/protections, 0 to 0.5",
    )
    eviction_policy: str = _option(
        "l1",
        values.choice(*EVICTION_POLICIES),
        "LRU",
        "LRU; ARC: reused objects outlive those stored once; IsolatedLRU, IsolatedARC: the same "
        "within each cache_salt; noop: never evict, refuse stores when full",
    )
    quotas: tuple[Quota, ...] = field(
        default=(),
        metadata={
            "option": Option(
                parse_quotas,
                'quotas of tenants, as JSON by cache_salt: {"a": "25%", "b": {"l1": 8, "l2": '
                '"10%"}}, GiB or shares; may be repeated (docs/operate.md)',
                "l1",
                is_json=True,
            )
        },
    )
    eviction_trigger_watermark: float = _option(
        "l1", _RATIO, 0.95, "share of L1 in use that starts eviction, 0 to 1"
    )
    eviction_ratio: float = _option(
        "l1", _RATIO, 0.05, "share of L1 that one eviction frees, 0 to 1"
    )
    l2_adapter: tuple[values.AdapterSpec, ...] = field(
        default=(),
        metadata={
            "option": Option(
                values.l2_adapters,
                'an L2 backend as JSON: {"type": "fs", "base_path": "/data/l2"}; may be repeated, '
                "the nearest first (docs/l2.md)",
                "l2",
                is_json=True,
            )
        },
    )
    l2_store_policy: str = _option(
        "l2",
        values.choice("default", "skip_l1", "reused"),
        "default",
        "default: write every object; skip_l1: an object leaves L1 once it is in L2, and GPUs that "
        "write files bypass L1; reused: write an object when it is used or stored again",
    )
    l2_prefetch_policy: str = _option(
        "l2",
        values.choice("default", "retain"),
        "default",
        "evict objects that were loaded from L2 first (default), or like any other (retain)",
    )
    l2_prefetch_max_in_flight: int = _option(
        "l2", values.integer(1, 1024), 8, "lookups that load from L2 at once"
    )
    l2_prefetch_timeout_seconds: float = _option(
        "l2", _SECONDS, 10.0, "longest time a lookup waits for L2; then it gets what has arrived"
    )
    l2_store_queue_ratio: float = _option(
        "l2", _RATIO, 0.5, "share of L1 that may wait to be written to L2, 0 to 1"
    )
    http_host: str = _option(
        "http", values.host, "127.0.0.1", "address of the admin port, * for all"
    )
    http_port: int = _option("http", _FREE_PORT, 8080, "admin port; 0 = any free port")
    disable_metrics: bool = _option("observability", values.boolean, False, "export no metrics")
    otlp_endpoint: str = _option(
        "observability",
        values.endpoint,
        "",
        "also push metrics to this OTLP/gRPC collector, such as http://localhost:4317",
    )
    trace_sample_ratio: float = _option(
        "observability",
        _RATIO,
        0.0,
        "share of requests whose traces go to --otlp-endpoint, 0 to 1; 0 = off",
    )
    prometheus_host: str = _option(
        "observability", values.host, "127.0.0.1", "address of --prometheus-port, * for all"
    )
    prometheus_port: int = _option(
        "observability",
        _FREE_PORT,
        0,
        "serve /metrics and /healthcheck, and nothing else, here too; 0 = off",
    )
    record_lookups: str = _option(
        "observability",
        values.file_path,
        "",
        "append every lookup to this file, as hashes without tokens, for `kv-sidecar replay`",
    )
    kv_event_log_size: int = _option(
        "observability",
        values.integer(0, 10_000_000),
        32_768,
        "KV events kept for workers that subscribe to them; 0 = no events (docs/routing.md)",
    )
    kv_events_endpoint: str = _option(
        "observability",
        values.socket_url,
        "",
        "publish KV events in vLLM's format on this socket, such as tcp://*:5557, for routers",
    )
    kv_events_replay_endpoint: str = _option(
        "observability",
        values.socket_url,
        "",
        "answer requests for missed KV events on this socket",
    )
    kv_events_pod: str = _option(
        "observability",
        values.identifier,
        socket.gethostname,
        "POD in kv@POD@MODEL, the topic of KV events; default: the host's name",
    )
    log_level: str = _option(
        "observability",
        values.choice("debug", "info", "warning", "error"),
        "info",
        "debug, info, warning or error",
    )
    max_message_mb: int = _option(
        "limits", values.integer(1, 2047), 64, "largest ZMQ message accepted, MiB"
    )
    max_tokens: int = _option(
        "limits", values.integer(1, 2**27), 1_048_576, "maximum number of tokens in one request"
    )
    max_pending_lookups: int = _option(
        "limits",
        values.integer(1, 1_000_000),
        4096,
        "maximum number of open lookups; one connection may have half of them",
    )
    max_queued_requests: int = _option(
        "limits",
        values.integer(1, 1_000_000),
        1024,
        "maximum number of transfers queued for one worker",
    )

    @property
    def l1_size_bytes(self) -> int:
        """The size of L1 in bytes."""
        return int(self.l1_size_gb * 2**30)


OPTIONS: dict[str, Option] = {f.name: f.metadata["option"] for f in dataclasses.fields(Config)}
"""Field name to option, in the order of the help text."""


def flag(name: str) -> str:
    """``l1_size_gb`` -> ``--l1-size-gb``."""
    return "--" + name.replace("_", "-")


def variable(name: str) -> str:
    """``l1_size_gb`` -> ``KV_SIDECAR_L1_SIZE_GB``."""
    return "KV_SIDECAR_" + name.upper()
