"""Digests of what gives hashes and bytes their meaning: only equals share objects."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final

import torch

from connectors.native import wire

# How vLLM's get_rope turns keys by their position alone. `longrope` has other factors in engines
# for more tokens than the model was first made for, `dynamic` may have another base.
ROTATIONS_BY_POSITION: Final = {
    *("default", "linear", "ntk", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling"),
    *("mllama4", "proportional", "bailing_mrope", "openpangu"),
}


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
    cache, draft = config.cache_config, config.speculative_config
    models = [config.model_config]
    # Drafts by n-grams have no model, and so no KV: vLLM names the target there.
    if draft is not None and draft.draft_model_config is not draft.target_model_config:
        models.append(draft.draft_model_config)
    found = [each for model in models for each in _meaning(model)]
    # Of equal sizes, and not in vLLM's OffloadingConfig.
    found += [str(cache.mamba_cache_dtype), str(cache.mamba_ssm_cache_dtype)]
    found += cache.kv_cache_dtype_skip_layers
    if device == "cpu":
        amx = torch.cpu._is_amx_tile_supported()
        found += [torch.backends.cpu.get_cpu_capability(), f"amx {amx}"]
    return found


def _meaning(model: Any) -> list[str]:
    """What of vLLM's ModelConfig decides the KV of given tokens."""
    said = (
        *(model.model, model.revision, model.code_revision),
        # What a branch was when it was loaded; a folder has none.
        getattr(model.hf_config, "_commit_hash", None),
        *(model.dtype, model.quantization, model.quantization_config),
        # vLLM's hashes of images hold what a request says of their processing, and not this.
        getattr(model.multimodal_config, "mm_processor_kwargs", None),
        _limit(model),
        model.hf_config.to_json_string(),
    )
    return [str(each) for each in said]


def _limit(model: Any) -> int | None:
    """How long requests may become, if the model computes KV of a prefix by that; -1: fitted.

    vLLM fits it to the memory after it has made the model for what its config says.
    """
    said = model.hf_config.to_dict()
    by_position = _values(said, "rope_type") <= ROTATIONS_BY_POSITION
    # Llama 4's queries, and so the KV of all later layers.
    scaled = any(str(each).startswith("llama4") for each in _values(said, "model_type"))
    if by_position and not scaled:
        return None
    return -1 if model.original_max_model_len == -1 else int(model.max_model_len)


def _values(said: Any, key: str) -> set[Any]:
    """All that a config and the configs within it say of `key`."""
    if not isinstance(said, dict):
        return set()
    own = {said[key]} if key in said else set()
    return own.union(*(_values(each, key) for each in said.values()))


def _digest(said: dict[str, Any]) -> bytes:
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).digest()
