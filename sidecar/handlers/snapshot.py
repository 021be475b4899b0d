"""The state of the cache as plain values, for `/status` and for people."""

from typing import Any

from sidecar.engines.groups import KVGroup
from sidecar.engines.registry import Instance, shown
from sidecar.handlers.core import Core
from sidecar.handlers.engine_driven import EngineDriven
from sidecar.handlers.native import Native
from sidecar.handlers.refusals import Refusal
from sidecar.tiers.backend import Backend
from sidecar.tiers.breaker import Breaker


def snapshot(core: Core, engine_driven: EngineDriven, native: Native) -> dict[str, Any]:
    """All of it. Sizes in bytes, times in seconds."""
    config, l1, leases = core.config, core.l1, core.leases
    now = core.now()
    return {
        "chunk_size": config.chunk_size,
        "hash_algorithm": config.hash_algorithm,
        "active_sessions": len(core.sessions),
        "l1": {
            "total_objects": l1.objects,
            "write_locked": l1.writing,
            "read_locked": l1.held,
            "used_bytes": l1.used_bytes,
            "total_bytes": l1.capacity,
            "populated_bytes": l1.usable_bytes,
        },
        "kept": {
            "seconds": config.l1_keep_seconds,
            "failed": l1.journal.failed,
            "undigested_objects": len(l1.journal.undigested),
            "unproven_objects": len(l1.unproven),
            "others_bytes": core.others_bytes(),
        },
        "eviction": {
            "policy": config.eviction_policy,
            "trigger_watermark": config.eviction_trigger_watermark,
            "ratio": config.eviction_ratio,
        },
        "read_ttl_seconds": config.l1_read_ttl_seconds,
        "write_ttl_seconds": config.l1_write_ttl_seconds,
        "active_prefetch_jobs": core.tiers.prefetches.active,
        "l2": [_adapter(core, backend) for backend in core.tiers.backends],
        "live_leases": leases.live,
        "held_slots": engine_driven.held(),
        "queue_depth": core.copies.depth,
        "refusals": dict(core.refusals.by_reason),
        "latest_refusals": [_refusal(refusal, now) for refusal in core.refusals.latest()],
        "engines": native.engines(),
        "workers": [_worker(core, worker, now) for worker in core.registry.instances.values()],
        "reap": {
            "timeout": config.worker_reap_timeout_seconds,
            "grace": config.worker_registration_grace_seconds,
        },
    }


def _adapter(core: Core, backend: Backend) -> dict[str, Any]:
    """One L2 adapter; sizes in bytes."""
    reading, reading_bytes = core.tiers.loads.in_flight(backend)
    return {
        "label": backend.label,
        "index": backend.index,
        "type": backend.settings.type,
        "shared": backend.adapter.shared,
        "scanned": backend.scanned or backend.adapter.shared,
        "objects": len(backend.catalog),
        "used_bytes": backend.catalog.used_bytes,
        "capacity_bytes": backend.settings.capacity_bytes,
        "clear_lasts": not backend.marking.unmarked,
        "left_over": backend.leftovers.waiting + backend.leftovers.stuck,
        "breakers": {"load": _breaker(backend.reads), "store": _breaker(backend.writes)},
        "reading": reading,
        "reading_bytes": reading_bytes,
        "writing": core.tiers.in_flight(backend),
        "queued": core.tiers.writes.waiting(backend),
        "read_bytes": core.telemetry.l2_transfer_bytes.total("load", backend.label),
        "written_bytes": core.telemetry.l2_transfer_bytes.total("store", backend.label),
    }


def _breaker(breaker: Breaker) -> dict[str, str]:
    return {"state": breaker.state, "last_failure": breaker.last_failure}


def _refusal(refusal: Refusal, now: float) -> dict[str, Any]:
    return {
        "operation": refusal.operation,
        "reason": refusal.reason,
        "detail": refusal.detail,
        "count": refusal.count,
        "seconds_ago": now - refusal.at,
    }


def _worker(core: Core, instance: Instance, now: float) -> dict[str, Any]:
    groups = instance.layout.groups if instance.layout else ()
    view = instance.slot_shape
    return {
        "instance_id": shown(instance.id),
        "kind": instance.kind,
        "lmcache": instance.releases,
        "model_name": instance.model_name,
        "world_size": instance.world_size,
        "device": instance.memory.device if instance.memory else "cpu",
        "moves_files": core.past_l1 is not None and core.past_l1.moves_files(instance),
        "last_seen_seconds": now - instance.last_seen,
        "connected": instance.unreachable_since is None,
        "num_layers": view.num_layers if view else sum(len(g.layers) for g in groups),
        "num_blocks": min((g.blocks for g in groups), default=None),
        "cache_size_per_token": sum(_bytes_per_token(g) for g in groups) or None,
        "groups": [_group(i, group) for i, group in enumerate(groups)],
        "block_size": view.block_size if view else None,
        "use_mla": view.single_plane if view else None,
    }


def _bytes_per_token(group: KVGroup) -> int:
    return sum(layer.block_bytes for layer in group.layers) // group.tokens_per_block


def _group(index: int, group: KVGroup) -> dict[str, Any]:
    first = group.layers[0]
    return {
        "engine_group_idx": index,
        "layer_indices": [layer.tensor for layer in group.layers],
        "tokens_per_block": group.tokens_per_block,
        "slots_per_block": first.slots,
        "dtype": first.dtype,
        "shape": list(first.shape),
        "is_mla": first.format_id in (3, 14),
        "engine_kv_format": first.format_name,
    }
