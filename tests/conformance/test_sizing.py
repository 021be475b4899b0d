"""`kv-sidecar size` says what vLLM itself makes of the same config.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from connectors.errors import ConnectorError
from connectors.model_config import Model, model
from connectors.model_file import read
from connectors.sizing import kv_size
from tests.support import models
from tests.support.server import REPO

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


# Configurations as their makers wrote them.
WRITTEN = {
    "Falcon 7B": models.FALCON_7B,
    "DBRX": models.DBRX,
    "MiMo V2 Flash": models.MIMO_V2_FLASH,
    "Falcon H1": models.FALCON_H1_1B,
    "Gemma 3": GEMMA3_TEXT,
    "DeepSeek V3": models.DEEPSEEK_V3,
}
# Of vLLM 0.32's architectures about 60 have a default that can be built on a CPU.
FEWEST = 55


@pytest.fixture(scope="module")
def built_by_vllm() -> list[dict[str, Any]]:
    """What vLLM's own classes keep of a token, for every architecture that it can build here."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.vllm_kv"],
        input=json.dumps(WRITTEN),
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        timeout=500,
    )
    told = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [each for each in told if "kept" in each]


def kept_by(found: Model) -> list[list[float]]:
    """As tests.support.vllm_kv tells it."""
    groups = [
        [kv_size(Model("", "bfloat16", (group,), found.latent)).rank_bytes / group.layers,
         group.window is not None, group.layers]
        for group in found.attention
    ]  # fmt: skip
    states = [[0, False, found.recurrent_layers]] if found.recurrent_layers else []
    return sorted(states + groups)


def said(config: dict[str, Any], text: dict[str, Any] | None = None) -> list[list[float]] | str:
    """What is read of a config.json, alone or as its class fills it in; or why nothing is."""
    try:
        return kept_by(model(config, text))
    except ConnectorError as refused:
        return str(refused)


def test_every_architecture_is_right_or_refused(built_by_vllm: list[dict[str, Any]]) -> None:
    wrong, right = {}, {"table": 0, "class": 0}
    for each in built_by_vllm:
        by_table, by_class = said(each["config"]), said(each["config"], each["text"])
        for by, found in (("table", by_table), ("class", by_class)):
            if found == each["kept"]:
                right[by] += 1
            elif not isinstance(found, str):
                wrong[each["name"], by] = (found, each["kept"])
    assert wrong == {}
    assert min(right.values()) >= FEWEST, right
    assert {each["name"] for each in built_by_vllm} >= WRITTEN.keys()
