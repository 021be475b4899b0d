"""Digests of what gives hashes and bytes their meaning: only equals share objects."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import torch

from connectors.native import wire


def engine_identity(config: Any, vllm_version: str, device: str, none_hash: bytes) -> bytes:
    """SHA-256 of an engine's identity, from vLLM's OffloadingConfig.

    `none_hash` is what vLLM's block hashes begin with: it comes from the hash algorithm and its
    seed, so engines whose hashes mean something else differ in it.
    """
    parallel = config.parallel
    said = {
        "door": wire.VERSION,
        "vllm": vllm_version,
        "device": device,
        "model": [config.model.name, config.model.dtype],
        "groups": [
            {
                "id": group.group_id,
                "tokens": group.tokens_per_block,
                "layers": list(group.layer_names),
                # vLLM 0.33 and newer say it.
                "window": getattr(group, "sliding_window_size_in_chunks", None),
            }
            for group in config.groups
        ],
        "bytes": config.worker_kv_bytes_per_block,
        "hash": config.cache.tokens_per_hash,
        "chunk": config.cache.blocks_per_chunk,
        "parallel": [
            *(parallel.tp_size, parallel.pp_size, parallel.pcp_size, parallel.dcp_size),
            parallel.world_size,
        ],
        "layout": [config.replicated_layout, config.canonical_layout, config.kv_cache_layout],
        "begin": hashlib.sha256(none_hash).hexdigest(),
    }
    return _digest(said)


def rank_layout(kv_caches: Any, offset: int, extra: Sequence[str]) -> bytes:
    """SHA-256 of how a rank's blocks lie, from vLLM's CanonicalKVCaches.

    How many blocks there are is no part of it. `extra` is what else the bytes within a block
    depend on.
    """
    said = {
        "offset": offset,
        "pages": [tensor.page_size_bytes for tensor in kv_caches.tensors],
        "groups": [
            [[reference.tensor_idx, reference.page_size_bytes] for reference in references]
            for references in kv_caches.group_data_refs
        ],
        "extra": list(extra),
    }
    return _digest(said)


def block_format(device: str) -> list[str]:
    """What the bytes within a block depend on, beside its size: of the model, and of the device.

    The model as this worker process loads it: one name may stand for several revisions or
    quantizations. vLLM's CPU attention orders keys by what the CPU can do.
    """
    from vllm.config import get_current_vllm_config

    config = get_current_vllm_config()
    model = config.model_config
    found = [str(model.revision), str(model.quantization), model.hf_config.to_json_string()]
    if device == "cpu":
        amx = torch.cpu._is_amx_tile_supported()
        found += [torch.backends.cpu.get_cpu_capability(), f"amx {amx}"]
    return found


def _digest(said: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()
