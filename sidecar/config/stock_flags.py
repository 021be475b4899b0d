"""Flags of ``lmcache server`` 0.5.6 that are no options here, and what becomes of each."""

from dataclasses import dataclass

_LAZY = "L1 pages are always populated in the background"
_NO_GRPC = "there is no gRPC transport"
_NO_REPORT = "serve prints no report"
_ALONE = "it has no effect without {}"

# Nothing is lost by leaving these out.
IGNORED: dict[str, str] = {
    "isolated-ipc": "a GPU worker's handles say how it shares; CPU workers share /dev/shm",
    "max-gpu-workers": "each GPU has a process of its own",
    "max-cpu-workers": "all copies share one pool, see --max-workers",
    "grpc-server-workers": _NO_GRPC,
    "disable-grpc-metrics": _NO_GRPC,
    "script-allowed-imports": "there is no /run_script",
    "session-ttl-seconds": "what a request holds ends with its leases, see --l1-read-ttl-seconds",
    "l1-use-lazy": _LAZY,
    "l1-init-size-gb": _LAZY,
    "l1-align-bytes": "the arena aligns its slots itself",
    "gds-l1-use-direct-io": _ALONE.format("--gds-l1-path"),
    "gds-l1-backend": _ALONE.format("--gds-l1-path"),
    "periodic-notifier-interval-ms": "nothing polls here",
    "event-bus-queue-size": "there is no event bus",
    "disable-observability": "there is no event bus, see --disable-metrics",
    "disable-logging": "there are no logging subscribers, see --log-level",
    "metrics-sample-rate": "every chunk is measured",
    "lookup-hash-log-rotation-interval": _ALONE.format("--lookup-hash-log-dir"),
    "lookup-hash-log-rotation-max-size": _ALONE.format("--lookup-hash-log-dir"),
    "lookup-hash-log-max-files": _ALONE.format("--lookup-hash-log-dir"),
    "gc-monitor-min-pause-ms": _ALONE.format("--enable-gc-monitor"),
    "gc-monitor-top-objects": _ALONE.format("--enable-gc-monitor"),
    "extra-logging-interval": _ALONE.format("--enable-extra-logging"),
    "format": _NO_REPORT,
    "output": _NO_REPORT,
    "quiet": _NO_REPORT,
}


@dataclass(frozen=True)
class Refusal:
    """Why a flag is refused, and the one value with which it asks for nothing."""

    reason: str
    harmless: str | None = None


_BLEND = Refusal("CacheBlend is not implemented")
_P2P = Refusal("peer-to-peer transfer is not implemented")
_COORDINATOR = Refusal("there is no coordinator support")
_NO_FOREIGN_CODE = Refusal("the sidecar runs no code named by a flag")
_TRACE = Refusal("trace recording is not implemented")

# Whoever passes one of these expects something that would silently be missing.
REFUSED: dict[str, Refusal] = {
    "transport": Refusal("only ZMQ is spoken", harmless="zmq"),
    "engine-type": Refusal(_BLEND.reason, harmless="default"),
    "runtime-plugin-locations": _NO_FOREIGN_CODE,
    "runtime-plugin-config": _NO_FOREIGN_CODE,
    "run-script-api-enabled": _NO_FOREIGN_CODE,
    "server-module": _NO_FOREIGN_CODE,
    "separate-object-groups": Refusal("a chunk is one object per KV group of the engine"),
    "enable-segmented-prefix": _BLEND,
    "enable-dedup-content": _BLEND,
    "enable-blend-reorder": _BLEND,
    "enable": Refusal("the experimental transfer modules are not implemented"),
    "p2p-advertise-url": _P2P,
    "p2p-listen-url": _P2P,
    "p2p-lookup-timeout": _P2P,
    "p2p-load-timeout": _P2P,
    "p2p-transfer-engine": _P2P,
    "l1-manager": Refusal("there is one L1, sized by --l1-size-gb"),
    "l1-use-hugepages": Refusal(
        "the arena is POSIX shared memory, not the hugepage pool; see --l1-transparent-hugepages"
    ),
    "l1-devdax-path": Refusal("L1 on a DAX device is not implemented", harmless=""),
    "gds-l1-path": Refusal("L1 on GPUDirect Storage is not implemented", harmless=""),
    "enable-tracing": Refusal("traces are set up by --trace-sample-ratio and --otlp-endpoint"),
    "lookup-hash-log-dir": Refusal("--record-lookups is the log of lookups here", harmless=""),
    "enable-gc-monitor": Refusal("garbage collections are not timed"),
    "enable-extra-logging": Refusal("there is no periodic log, see /metrics"),
    "trace-level": _TRACE,
    "trace-output": _TRACE,
    "coordinator-url": _COORDINATOR,
    "coordinator-advertise-ip": _COORDINATOR,
    "coordinator-heartbeat-interval": _COORDINATOR,
    "coordinator-event-reporting": _COORDINATOR,
    "coordinator-event-flush-interval": _COORDINATOR,
    "coordinator-event-transport": _COORDINATOR,
    "coordinator-kafka-bootstrap-servers": _COORDINATOR,
    "coordinator-kafka-topic": _COORDINATOR,
    "coordinator-kafka-delivery-timeout": _COORDINATOR,
    "coordinator-blend-timeout": _COORDINATOR,
    "coordinator-blend-match-concurrency": _COORDINATOR,
}


# These have a ``--no-`` form.
_SWITCHES = {
    "isolated-ipc",
    "run-script-api-enabled",
    "separate-object-groups",
    "l1-use-lazy",
    "l1-use-hugepages",
    "gds-l1-use-direct-io",
}


def spellings(name: str) -> list[str]:
    """The flags that set ``name``."""
    if name == "quiet":
        return ["-q", "--quiet"]
    return [f"--{name}", f"--no-{name}"] if name in _SWITCHES else [f"--{name}"]


def refusal(name: str, spelling: str, arguments: list[str]) -> str | None:
    """Why this use of a stock flag cannot be honoured; None if nothing would be missing."""
    refused = REFUSED.get(name)
    if refused is None or spelling.startswith("--no-"):
        return None
    if refused.harmless is not None and arguments == [refused.harmless]:
        return None
    return refused.reason


def warning(name: str, spelling: str) -> str:
    """The line for a stock flag that is accepted and changes nothing."""
    return f"{spelling} changes nothing here: {IGNORED.get(name, 'it is always so here')}"
