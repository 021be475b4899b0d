"""`kv-sidecar size` says what vLLM itself makes of the same config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from connectors.model_config import read
from connectors.sizing import kv_size
from tests.support import models

pytest.importorskip("vllm")
import torch
from vllm.config import ModelConfig, ParallelConfig
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

BLOCK = 16
# Gemma's language model alone: with the other, vLLM imports torchvision.
GEMMA3_TEXT = {**models.GEMMA3_4B["text_config"], "architectures": ["Gemma3ForCausalLM"]}
MODELS = {
    "llama": models.LLAMA_8B,
    "qwen3": models.QWEN3_4B,
    "deepseek_v3": models.DEEPSEEK_V3,
    "gemma3": {**GEMMA3_TEXT, "torch_dtype": "bfloat16"},
    "mistral": models.MISTRAL_7B,
}


def bytes_by_vllm(config: ModelConfig, tp: int, dtype: Any) -> int:
    """A token's KV on one rank: the pages of all layers."""
    parallel = ParallelConfig(tensor_parallel_size=tp, distributed_executor_backend="mp")
    spec = (MLAAttentionSpec if config.use_mla else FullAttentionSpec)(
        block_size=BLOCK,
        num_kv_heads=config.get_num_kv_heads(parallel),
        head_size=config.get_head_size(),
        dtype=dtype,
    )
    assert not spec.page_size_bytes % BLOCK
    return config.get_num_layers(parallel) * spec.page_size_bytes // BLOCK


@pytest.mark.parametrize("name", MODELS)
def test_the_size_is_that_of_vllm(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text(json.dumps(MODELS[name]))
    ours = read(tmp_path)
    theirs = ModelConfig(model=str(tmp_path), skip_tokenizer_init=True)
    assert ours.latent == theirs.use_mla
    assert f"torch.{ours.dtype}" == str(theirs.dtype)
    for tp in (1, 2, 8, 16):
        assert kv_size(ours, tp=tp).rank_bytes == bytes_by_vllm(theirs, tp, theirs.dtype)
        assert kv_size(ours, "fp8", tp).rank_bytes == bytes_by_vllm(theirs, tp, torch.uint8)
