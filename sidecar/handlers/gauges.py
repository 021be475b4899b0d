"""What the gauges tell of the server's state. They are read on the exporting thread."""

from sidecar.handlers.core import Core
from sidecar.telemetry import Telemetry
from sidecar.tiers.backend import Backend
from sidecar.tiers.tiers import Tiers


def observe(core: Core) -> None:
    """Let the gauges tell of `core`, from now on."""
    for name, source in {
        "l1_memory_usage_bytes": lambda: core.l1.used_bytes,
        "l1_memory_populated_bytes": lambda: core.l1.usable_bytes,
        "l1_memory_pinned_bytes": lambda: core.gpus.pinned_bytes(),
        "l1_usage_ratio": lambda: core.l1.used_bytes / core.l1.capacity,
        "l1_protected_bytes": lambda: core.l1.protections.nbytes,
        "l1_protections": lambda: len(core.l1.protections),
        "l1_kept": lambda: int(core.config.l1_keep_seconds > 0 and not core.l1.journal.failed),
        "l1_undigested_objects": lambda: len(core.l1.journal.undigested),
        "l1_unproven_objects": lambda: len(core.l1.unproven),
        "l1_others_bytes": lambda: core.others_bytes(),
        "active_prefetch_jobs": lambda: core.tiers.prefetches.active,
        "registered_workers": lambda: len(core.registry.instances),
        "live_leases": lambda: core.leases.live,
        "queue_depth": lambda: core.copies.depth,
        "queue_age_seconds": core.copies.oldest_seconds,
    }.items():
        core.telemetry.gauge_source(name, source)
    for backend in core.tiers.backends:
        _observe_backend(core.telemetry, core.tiers, backend)


def _observe_backend(telemetry: Telemetry, tiers: Tiers, backend: Backend) -> None:
    label, index = backend.label, str(backend.index)
    gauge = telemetry.gauge_source
    gauge("l2_usage_bytes", lambda: backend.catalog.used_bytes, label)
    gauge("l2_objects", lambda: len(backend.catalog), label)
    gauge("l2_breaker_open", lambda: int(backend.reads.state != "closed"), label, "load")
    gauge("l2_breaker_open", lambda: int(backend.writes.state != "closed"), label, "store")
    gauge("l2_breaker_open", lambda: int(backend.deletes.state != "closed"), label, "delete")
    gauge("num_inflight_l2_stores", lambda: tiers.in_flight(backend), label)
    gauge("num_queued_l2_stores", lambda: tiers.writes.waiting(backend), label)
    gauge("l2_queue_age_seconds", lambda: tiers.writes.waiting_seconds(backend), label)
    gauge("num_inflight_l2_loads", lambda: tiers.loads.in_flight(backend)[0], label, index)
    gauge(
        "inflight_load_memory_usage_bytes", lambda: tiers.loads.in_flight(backend)[1], label, index
    )
    gauge("l2_write_amplification", lambda: _write_amplification(telemetry, label), label)
    gauge("l2_store_adapters", lambda: len(tiers.backends), "active")
    gauge("l2_prefetch_adapters", lambda: len(tiers.backends), "active")


def _write_amplification(telemetry: Telemetry, label: str) -> float:
    stored = telemetry.transfer_bytes.total("store")
    return telemetry.l2_transfer_bytes.total("store", label) / stored if stored else 0.0
