"""KV sizes from config.json; tests/conformance/test_sizing.py compares them with vLLM's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import sizing
from connectors.errors import ConnectorError
from connectors.model_config import Attention, model
from connectors.sizing import fit, kv_size
from sidecar.cache import arena
from sidecar.cli import main
from tests.support.models import DEEPSEEK_V3, GEMMA3_4B, LLAMA_8B, MISTRAL_7B

KIB = 1024


def test_llama_has_128_kib_a_token() -> None:
    size = kv_size(model(LLAMA_8B))
    assert size.token_bytes == 128 * KIB  # 32 layers, K and V, 8 heads of 128, 2 bytes
    assert size.chunk_bytes(256) == 32 << 20


def test_fp8_is_half_of_it() -> None:
    assert kv_size(model(LLAMA_8B), "fp8").token_bytes == 64 * KIB


@pytest.mark.parametrize(("tp", "rank"), [(1, 128), (2, 64), (8, 16), (16, 16), (32, 16)])
def test_kv_heads_are_split_over_ranks_and_then_replicated(tp: int, rank: int) -> None:
    size = kv_size(model(LLAMA_8B), tp=tp)
    assert size.rank_bytes == rank * KIB
    assert size.token_bytes == tp * rank * KIB


def test_a_latent_is_kept_once_for_all_ranks() -> None:
    size = kv_size(model(DEEPSEEK_V3), tp=8)
    assert size.token_bytes == 61 * (512 + 64) * 2
    assert size.ranks == 1


def test_sparse_attention_adds_its_indexer() -> None:
    sparse = model({**DEEPSEEK_V3, "model_type": "deepseek_v32", "index_head_dim": 128})
    assert kv_size(sparse).token_bytes == 61 * (576 * 2 + 132)
    assert kv_size(sparse, "fp8").token_bytes == 61 * (656 + 132)


def test_windows_are_found() -> None:
    gemma, mistral = model(GEMMA3_4B), model(MISTRAL_7B)
    assert gemma.attention == (Attention(5, 4, 512), Attention(29, 4, 512, 1024))
    assert mistral.attention == (Attention(32, 8, 256, 4096),)
    size = kv_size(gemma)
    assert size.windowed * 34 == size.rank_bytes * 29


@pytest.mark.parametrize(
    ("said", "full", "windowed", "states"),
    [
        (
            {"layer_types": ["full_attention", "sliding_attention"] * 2, "sliding_window": 8},
            2,
            2,
            0,
        ),
        ({"layer_types": ["linear_attention"] * 3 + ["full_attention"]}, 1, 0, 3),
        ({"full_attention_interval": 4}, 1, 0, 3),
        ({"hybrid_override_pattern": "M-M*"}, 1, 0, 2),
        ({"layers_block_type": ["mamba", "attention", "mamba", "hybrid"]}, 2, 0, 2),
        ({"attn_layer_period": 4, "attn_layer_offset": 1}, 1, 0, 3),
        ({"attn_layer_indices": [3]}, 1, 0, 3),
        ({"attn_type_list": [0, 0, 1, 1]}, 2, 0, 2),
        ({"sliding_window": 8, "use_sliding_window": False}, 4, 0, 0),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, 3, 1, 0),
        ({"sliding_window": 8, "sliding_window_pattern": 2}, 2, 2, 0),
        ({"layer_types": ["full_attention"] * 4, "num_kv_shared_layers": 1}, 3, 0, 0),
    ],
)
def test_kinds_of_layers(said: dict[str, Any], full: int, windowed: int, states: int) -> None:
    base = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 64}
    found = model({**base, **said})
    by_window = {group.window is not None: group.layers for group in found.attention}
    assert by_window == {k: n for k, n in ((False, full), (True, windowed)) if n}
    assert found.recurrent_layers == states


def test_what_fits_is_counted_in_whole_chunks() -> None:
    size = kv_size(model(LLAMA_8B))
    assert fit(size, (1 << 30) + 1, 256, 8192) == sizing.Fit(tokens=8192, prompts=1)
    assert fit(size, (1 << 30) - 1, 256, 8192).prompts == 0
    assert fit(size, 1 << 30, 256, 8192 + 255).prompts == 1
    assert fit(size, 1 << 30, 256, 255).prompts is None


def test_objects_take_whole_pages_as_in_the_arena() -> None:
    assert sizing.ALIGNMENT == arena.ALIGNMENT
    tiny = model({"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 6})
    assert kv_size(tiny, tp=2).chunk_bytes(16) == 2 * 4096


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "it does not say num_hidden_layers"),
        ({"num_hidden_layers": "12"}, 'num_hidden_layers is "12", not a number above 0'),
        ({**LLAMA_8B, "num_hidden_layers": 2**30}, "are more than any model has"),
        ({**LLAMA_8B, "num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({**LLAMA_8B, "layer_types": ["full_attention"]}, "layer_types has 1 entries for 32"),
        ({**LLAMA_8B, "layer_types": ["odd"] * 32}, "layer_types has the unknown kind 'odd'"),
        ({**LLAMA_8B, "is_encoder_decoder": True}, "encoder-decoder"),
        ({**LLAMA_8B, "global_head_dim": 512}, "head sizes that differ by layer"),
        ([], "it holds no object"),
    ],
)
def test_a_wrong_config_is_one_line(
    config: Any, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["size", str(tmp_path)]) == 2
    line = capsys.readouterr().err
    assert reason in line
    assert line.count("\n") == 1


def test_a_file_that_is_no_json_or_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    assert main(["size", str(file)]) == 2
    assert capsys.readouterr().err == f"kv-sidecar: cannot read {file}: No such file or directory\n"
    file.write_text("model")
    assert main(["size", str(file)]) == 2
    assert "is not JSON" in capsys.readouterr().err
    with pytest.raises(ConnectorError, match="dtype 'int4' is unknown"):
        kv_size(model({**LLAMA_8B, "torch_dtype": "int4"}))


_KEYS = [
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size",
    "kv_lora_rank", "qk_rope_head_dim", "index_head_dim", "sliding_window", "layer_types",
    "sliding_window_pattern", "full_attention_interval", "attn_layer_period", "attn_layer_offset",
    "attn_layer_indices", "attn_type_list", "hybrid_override_pattern", "max_window_layers",
    "num_kv_shared_layers", "text_config", "torch_dtype", "quantization_config", "architectures",
]  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 9) | st.floats() | st.sampled_from(["M*", "mamba"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES))
@settings(max_examples=150, deadline=None)
def test_any_json_is_a_model_or_one_line(said: dict[str, Any]) -> None:
    base = {"num_hidden_layers": 4, "num_attention_heads": 2, "hidden_size": 64}
    try:
        assert kv_size(model({**base, **said}), "fp8", tp=2).rank_bytes >= 0
    except ConnectorError as error:
        assert "\n" not in str(error)


def test_a_checkpoint_with_scales_has_fp8_kv() -> None:
    scheme = {"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}
    modelopt = {"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}
    for quantized in (scheme, modelopt):
        found = model({**LLAMA_8B, "quantization_config": quantized})
        assert kv_size(found).token_bytes == 64 * KIB


@pytest.mark.parametrize("arguments", [["--tp", "0"], ["--tp", "x"], ["--l1-size-gb", "-1"]])
def test_wrong_numbers_say_why(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size", "config.json", *arguments]) == 2
    assert arguments[0] in capsys.readouterr().err


def test_the_command_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert main(["size", str(tmp_path), "--tp", "4", "--l1-size-gb", "16"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "model         LlamaForCausalLM: 32 layers, 8 KV heads of 128, bfloat16",
        "one token     128 KiB: 32 KiB on each of 4 ranks",
        "one chunk     32 MiB (256 tokens)",
        "one prompt    1 GiB (8,192 tokens, 32 whole chunks)",
        "L1 of 16 GiB  131,072 tokens, 16 prompts of 8,192 tokens",
    ]


def test_the_command_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GEMMA3_4B))
    assert main(["size", str(tmp_path / "config.json"), "--l1-size-gb", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["bytes_per_token"] == 34 * 4 * 512 * 2
    assert figures["bytes_per_token_windowed"] == 29 * 4 * 512 * 2
    assert figures["l1_tokens"] == (1 << 30) // (figures["bytes_per_token"] * 256) * 256


def test_layers_with_a_state_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hybrid = {**LLAMA_8B, "layer_types": ["linear_attention"] * 24 + ["full_attention"] * 8}
    (tmp_path / "config.json").write_text(json.dumps(hybrid))
    assert main(["size", str(tmp_path)]) == 0
    assert "24 layers have a state and no KV" in capsys.readouterr().out
    hybrid["layer_types"] = ["mamba"] * 32
    (tmp_path / "config.json").write_text(json.dumps(hybrid))
    assert main(["size", str(tmp_path)]) == 2
    assert "no layer of this model has a KV cache" in capsys.readouterr().err
