"""Which engines share objects: every option that changes what blocks hold keeps them apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: scripts/install.py engine")

import torch
import vllm.config
from vllm.config import CacheConfig, ModelConfig
from vllm.v1.kv_offload.base import (
    CanonicalKVCacheRef,
    CanonicalKVCaches,
    CanonicalKVCacheTensor,
)
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)

from connectors.native.identity import block_format, engine_identity, rank_layout

# Of a rotation of 32 dimensions.
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096,
    "short_factor": [1.0] * 16, "long_factor": [2.0] * 16, "factor": 32.0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
YARN = {
    "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 4096,
}  # fmt: skip
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 100,
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": 131072, "rope_theta": 1e4,
}  # fmt: skip
# Whose queries are scaled in engines for more than 32768 tokens, and with them what follows.
LLAMA4 = {
    **MODEL, "architectures": ["Llama4ForCausalLM"], "model_type": "llama4_text",
    "intermediate_size_mlp": 64,
}  # fmt: skip


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The format of an engine's blocks, by the options of its model, its cache and its draft."""

    def made(said: dict[str, Any] = MODEL, **options: Any) -> ModelConfig:
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(said))
        changed = {key: options.pop(key) for key in ("_commit",) if key in options}
        model = ModelConfig(
            model=str(folder), skip_tokenizer_init=True, **{"dtype": "bfloat16", **options}
        )
        model.model = "a model"
        if changed:
            model.hf_config._commit_hash = changed["_commit"]
        return model

    def formatted(
        said: dict[str, Any] = MODEL,
        cache: dict[str, Any] | None = None,
        draft: dict[str, Any] | None = None,
        processor: dict[str, Any] | None = None,
        ngrams: bool = False,
        **options: Any,
    ) -> list[str]:
        model = made(said, **options)
        model.multimodal_config = SimpleNamespace(mm_processor_kwargs=processor)
        drafting = model if ngrams else made(draft) if draft else None
        speculative = SimpleNamespace(target_model_config=model, draft_model_config=drafting)
        config = SimpleNamespace(
            model_config=model, cache_config=CacheConfig(**cache or {}),
            speculative_config=speculative if drafting else None,
        )  # fmt: skip
        monkeypatch.setattr(vllm.config, "get_current_vllm_config", lambda: config)
        return block_format("cuda")

    return formatted


def rope(parameters: dict[str, Any]) -> dict[str, Any]:
    return {**MODEL, "rope_scaling": parameters}


@pytest.mark.parametrize(
    "other",
    [
        {"said": rope(YARN)},
        {"said": rope(LONG)},
        {"said": {**MODEL, "rope_theta": 5e5}},
        {"hf_overrides": {"rms_norm_eps": 0.5}},
        {"revision": "another"},
        {"_commit": "which `main` was when it was loaded"},
        {"code_revision": "another"},
        {"quantization": "fp8"},
        {"dtype": "float16"},
        {"cache": {"mamba_cache_dtype": "float16"}},
        {"cache": {"mamba_ssm_cache_dtype": "float16"}},
        {"cache": {"kv_cache_dtype_skip_layers": ["1"]}},
        {"draft": {**MODEL, "num_hidden_layers": 1}},
        {"processor": {"max_pixels": 1000}},
    ],
    ids=str,
)
def test_what_changes_what_blocks_hold_changes_their_format(
    engine: Callable[..., list[str]], other: dict[str, Any]
) -> None:
    assert engine(**other) != engine()


@pytest.mark.parametrize(
    "other",
    [
        {"max_model_len": 4096},
        {"max_model_len": -1},
        {"seed": 7},
        {"enforce_eager": True},
        {"ngrams": True},
        {"served_model_name": "another"},
        {"tokenizer_revision": "another"},
        {"cache": {"gpu_memory_utilization": 0.5}},
        {"cache": {"num_gpu_blocks_override": 7}},
        {"cache": {"prefix_caching_hash_algo": "xxhash"}},
    ],
    ids=str,
)
def test_what_does_not_leaves_it(engine: Callable[..., list[str]], other: dict[str, Any]) -> None:
    assert engine(**other) == engine()


@pytest.mark.parametrize("said", [rope(LONG), rope(DYNAMIC), LLAMA4], ids=["long", "dynamic", "4"])
def test_how_long_requests_may_become_where_that_decides(
    engine: Callable[..., list[str]], said: dict[str, Any]
) -> None:
    """Phi-3 turns keys by other factors in engines for more than it was first made for."""
    short, long = engine(said, max_model_len=4096), engine(said, max_model_len=32768 + 1)
    assert short != long
    assert engine(said, max_model_len=4096) == short


@pytest.mark.parametrize(
    "said", [MODEL, rope(YARN), rope({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4})]
)
def test_how_long_requests_may_become_elsewhere(
    engine: Callable[..., list[str]], said: dict[str, Any]
) -> None:
    assert engine(said, max_model_len=4096) == engine(said, max_model_len=32768)


def test_a_limit_that_is_fitted_to_the_memory_comes_after_the_model(
    engine: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was made for what its config says; how much memory there is does not decide."""
    known, real = engine(rope(LONG), max_model_len=-1), ModelConfig.__post_init__

    def fitted(model: ModelConfig, *given: Any, **more: Any) -> None:
        real(model, *given, **more)
        model.max_model_len = 3000

    monkeypatch.setattr(ModelConfig, "__post_init__", fitted)
    assert engine(rope(LONG), max_model_len=-1) == known


GROUP = OffloadingGroupConfig(16, ("a", "b"), 0)
ENGINE = OffloadingConfig(
    groups=(GROUP,),
    worker_kv_bytes_per_block=4096,
    enable_kv_cache_events=False,
    extra_config={},
    engine_id="one",
    model=OffloadingModelConfig("a model", "bfloat16"),
    cache=OffloadingCacheConfig(16, 1),
    parallel=OffloadingParallelConfig(0, 2, 2, 1, 1, 1, 0, 1, None, False),
    kv_cache_layout="LBHNC",
)


def identity(config: OffloadingConfig = ENGINE, *said: Any) -> bytes:
    return engine_identity(config, *(said or ("0.32.0", "cuda", b"begin")))


@pytest.mark.parametrize(
    "config",
    [
        replace(ENGINE, groups=(replace(GROUP, tokens_per_block=32),)),
        replace(ENGINE, groups=(replace(GROUP, layer_names=("a", "c")),)),
        replace(ENGINE, groups=(replace(GROUP, group_id=1),)),
        replace(ENGINE, groups=(GROUP, replace(GROUP, group_id=1))),
        replace(ENGINE, worker_kv_bytes_per_block=8192),
        replace(ENGINE, model=OffloadingModelConfig("another", "bfloat16")),
        # --kv-cache-dtype, else the model's
        replace(ENGINE, model=OffloadingModelConfig("a model", "fp8_e5m2")),
        replace(ENGINE, cache=OffloadingCacheConfig(32, 1)),
        replace(ENGINE, cache=OffloadingCacheConfig(16, 2)),
        replace(ENGINE, kv_cache_layout="LBNHC"),
        replace(ENGINE, replicated_layout=True),
        *(
            replace(ENGINE, parallel=replace(ENGINE.parallel, **{name: 4}))
            for name in ("world_size", "tp_size", "pp_size", "pcp_size", "dcp_size")
        ),
    ],
)
def test_engines_whose_hashes_or_bytes_mean_something_else(config: OffloadingConfig) -> None:
    assert identity(config) != identity()


@pytest.mark.parametrize(
    "said", [("0.33.0", "cuda", b"begin"), ("0.32.0", "xpu", b"begin"), ("0.32.0", "cuda", b"x")]
)
def test_another_vllm_device_or_seed(said: tuple[str, str, bytes]) -> None:
    assert identity(ENGINE, *said) != identity()


@pytest.mark.parametrize(
    "config",
    [
        replace(ENGINE, engine_id="two"),
        replace(ENGINE, enable_kv_cache_events=True),
        replace(ENGINE, extra_config={"kv_sidecar.budget_ms": 5}),
        replace(ENGINE, parallel=replace(ENGINE.parallel, data_parallel_size=2)),
        replace(ENGINE, parallel=replace(ENGINE.parallel, data_parallel_index=1)),
    ],
)
def test_engines_that_are_of_one_kind(config: OffloadingConfig) -> None:
    assert identity(config) == identity()


def caches(blocks: int, *pages: int, groups: int = 1) -> CanonicalKVCaches:
    tensors = [CanonicalKVCacheTensor(torch.zeros(blocks, p, dtype=torch.int8), p) for p in pages]
    references = [CanonicalKVCacheRef(index, page) for index, page in enumerate(pages)]
    return CanonicalKVCaches(tensors, [references] * groups)


def test_how_a_ranks_blocks_lie() -> None:
    one = rank_layout(caches(8, 64, 32), 0, ["format"])

    assert rank_layout(caches(9, 64, 32), 0, ["format"]) == one, "how many there are"
    assert len(
        {
            one,
            rank_layout(caches(8, 32, 64), 0, ["format"]),
            rank_layout(caches(8, 64), 0, ["format"]),
            rank_layout(caches(8, 64, 32, groups=2), 0, ["format"]),
            rank_layout(caches(8, 64, 32), 96, ["format"]),
            rank_layout(caches(8, 64, 32), 0, ["another"]),
        }
    ) == 6  # fmt: skip
