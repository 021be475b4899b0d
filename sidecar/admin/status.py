"""``GET /status`` in the shape of LMCache 0.5.6, which ``lmcache describe kvcache`` reads."""

from collections.abc import Mapping, Sequence
from typing import Any

from sidecar import __version__

Json = dict[str, Any]


def document(snapshot: Mapping[str, Any], unhealthy: str | None, uptime_seconds: float) -> Json:
    """The state of the server; keys that LMCache does not have come last."""
    workers: Sequence[Mapping[str, Any]] = snapshot["workers"]
    handles = [worker for worker in workers if worker["kind"] == "handle"]
    engine_driven = [worker for worker in workers if worker["kind"] == "engine_driven"]
    return {
        "is_healthy": unhealthy is None,
        "engine_type": "MPCacheServer",
        "chunk_size": snapshot["chunk_size"],
        "hash_algorithm": snapshot["hash_algorithm"],
        "active_sessions": snapshot["active_sessions"],
        "storage_manager": _storage_manager(snapshot, unhealthy is None),
        "active_prefetch_jobs": snapshot["active_prefetch_jobs"],
        "active_p2p_lookup_jobs": 0,
        "p2p_enabled": False,
        "p2p_state": "disabled",
        "p2p_peer_count": 0,
        "p2p_peers": [],
        "worker_liveness": {
            "enabled": snapshot["reap"]["timeout"] > 0,
            "reap_timeout_seconds": snapshot["reap"]["timeout"],
            "registration_grace_seconds": snapshot["reap"]["grace"],
            "tracked_instances": len(workers),
        },
        "kv_events": snapshot["kv_events"],
        "registered_gpu_ids": [worker["instance_id"] for worker in handles],
        "cache_context_meta": {str(w["instance_id"]): _cache_context(w) for w in handles},
        "registered_non_cuda_instance_ids": [w["instance_id"] for w in engine_driven],
        "non_cuda_context_meta": {
            str(w["instance_id"]): {
                key: w[key] for key in ("model_name", "world_size", "block_size", "use_mla")
            }
            for w in engine_driven
        },
        "server": {
            "name": "kv-sidecar",
            "version": __version__,
            "uptime_seconds": uptime_seconds,
        },
        "unhealthy_reason": unhealthy,
        "kept": snapshot["kept"],
        "live_leases": snapshot["live_leases"],
        "queue_depth": snapshot["queue_depth"],
        "refusals": snapshot["refusals"],
        "tenants": snapshot["tenants"],
        "protected": snapshot["protected"],
        "workers": [_worker(worker) for worker in workers],
        "engines": snapshot["engines"],
    }


def _storage_manager(snapshot: Mapping[str, Any], healthy: bool) -> Json:
    l1 = _l1_manager(snapshot, healthy)
    eviction = {
        "is_healthy": healthy,
        "thread_alive": healthy,
        "eviction_policy": snapshot["eviction"]["policy"],
        "trigger_watermark": snapshot["eviction"]["trigger_watermark"],
        "eviction_ratio": snapshot["eviction"]["ratio"],
    }
    return {
        "is_healthy": healthy,
        "l1_managers": {"default": l1},
        "store_controllers": {},
        "l1_eviction_controllers": {"default": eviction},
        "prefetch_controller": {
            "is_healthy": healthy,
            "in_flight_request_count": snapshot["active_prefetch_jobs"],
        },
        "l2_eviction_controller": None,
        "l2_adapters": [_l2_adapter(adapter) for adapter in snapshot["l2"]],
        "num_l2_adapters": len(snapshot["l2"]),
        "l1_usage": [l1["memory_used_bytes"], l1["memory_total_bytes"]],
        "l1_manager": l1,
        "eviction_controller": eviction,
    }


def _l1_manager(snapshot: Mapping[str, Any], healthy: bool) -> Json:
    l1 = snapshot["l1"]
    used, total = l1["used_bytes"], l1["total_bytes"]
    return {
        "is_healthy": healthy,
        "total_object_count": l1["total_objects"],
        "write_locked_count": l1["write_locked"],
        "read_locked_count": l1["read_locked"],
        "temporary_count": 0,
        "staging_object_count": l1["write_locked"],
        "memory_used_bytes": used,
        "memory_total_bytes": total,
        "memory_configured_bytes": total,
        "capacity_bytes_by_backend": {"shm": total},
        "memory_usage_ratio": used / total if total else 0.0,
        "write_ttl_seconds": snapshot["write_ttl_seconds"],
        "read_ttl_seconds": snapshot["read_ttl_seconds"],
        "memory_populated_bytes": l1["populated_bytes"],
    }


def _l2_adapter(adapter: Mapping[str, Any]) -> Json:
    """One L2 adapter; healthy means that neither loads nor stores are cut off."""
    breakers = adapter["breakers"]
    capacity = adapter["capacity_bytes"]
    return {
        "is_healthy": all(breaker["state"] == "closed" for breaker in breakers.values()),
        "type": adapter["type"],
        "name": adapter["label"],
        "adapter_index": adapter["index"],
        "shared": adapter["shared"],
        "scanned": adapter["scanned"],
        "stored_object_count": adapter["objects"],
        "used_bytes": adapter["used_bytes"],
        "capacity_bytes": capacity,
        "usage_ratio": adapter["used_bytes"] / capacity if capacity else None,
        "clear_lasts": adapter["clear_lasts"],
        "left_over_object_count": adapter["left_over"],
        "inflight_loads": adapter["reading"],
        "inflight_load_bytes": adapter["reading_bytes"],
        "inflight_stores": adapter["writing"],
        "queued_stores": adapter["queued"],
        "breakers": breakers,
    }


def _cache_context(worker: Mapping[str, Any]) -> Json:
    layout = {key: worker[key] for key in ("num_layers", "num_blocks", "cache_size_per_token")}
    groups = [_kernel_group(index, group) for index, group in enumerate(worker["groups"])]
    return {
        "model_name": worker["model_name"],
        "world_size": worker["world_size"],
        "kv_cache_layout": {**layout, "kernel_groups": groups},
    }


def _kernel_group(index: int, group: Mapping[str, Any]) -> Json:
    return {
        "kernel_group_idx": index,
        "engine_group_idx": group["engine_group_idx"],
        "object_group_idx": group["engine_group_idx"],
        "num_layers": len(group["layer_indices"]),
        "layer_indices": list(group["layer_indices"]),
        "tokens_per_block": group["tokens_per_block"],
        "slots_per_block": group["slots_per_block"],
        "dtype": group["dtype"],
        "engine_kv_concrete_shape": str(tuple(group["shape"])),
        "is_mla": group["is_mla"],
        "engine_kv_format": group["engine_kv_format"],
    }


def _worker(worker: Mapping[str, Any]) -> Json:
    keys = ("instance_id", "kind", "lmcache", "model_name", "world_size", "device", "moves_files")
    return {key: worker[key] for key in (*keys, "last_seen_seconds", "connected")}
