"""KV sizes from config.json; tests/conformance/test_sizing.py compares them with vLLM's own."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connectors import model_file, sizing
from connectors.errors import ConnectorError, NotKnown
from connectors.model_config import Attention, model
from connectors.sizing import fit, kv_size
from sidecar.cache import arena
from sidecar.cli import main
from tests.support import models
from tests.support.models import DEEPSEEK_V3, GEMMA3_4B, LLAMA_8B, MISTRAL_7B

KIB = 1024
PLAIN = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "hidden_size": 64,
}


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
        ({"layers_block_type": ["mamba", "attention", "mamba", "hybrid"]}, 2, 0, 3),
        ({"attn_layer_period": 4, "attn_layer_offset": 1}, 1, 0, 3),
        ({"attn_layer_indices": [3]}, 1, 0, 3),
        ({"attn_type_list": [0, 0, 1, 1]}, 2, 0, 2),
        ({"sliding_window": 8, "use_sliding_window": False}, 4, 0, 0),
        ({"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}, 3, 1, 0),
        ({"model_type": "mistral", "sliding_window": 8, "num_key_value_heads": 2}, 0, 4, 0),
        ({"hybrid_layer_pattern": [0, 1, 1, 0], "sliding_window_size": 8}, 2, 2, 0),
        (
            {"linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1, 2, 3]}},
            1,
            0,
            3,
        ),
        ({"full_attn_idxs": [0, 2]}, 2, 0, 2),
        ({"model_type": "falcon_h1", "num_key_value_heads": 2, "mamba_d_ssm": 8}, 4, 0, 4),
        ({"sliding_window": 8, "sliding_window_pattern": 2}, 2, 2, 0),
        ({"layer_types": ["full_attention"] * 4, "num_kv_shared_layers": 1}, 3, 0, 0),
    ],
)
def test_kinds_of_layers(said: dict[str, Any], full: int, windowed: int, states: int) -> None:
    found = model({**PLAIN, **said})
    by_window = {group.window is not None: group.layers for group in found.attention}
    assert by_window == {k: n for k, n in ((False, full), (True, windowed)) if n}
    assert found.recurrent_layers == states


@pytest.mark.parametrize(
    ("name", "token_bytes", "windowed", "states"),
    [
        ("FALCON_7B", 8_192, 0, 0),
        ("DBRX", 163_840, 0, 0),
        ("KIMI_LINEAR_48B", 8_064, 0, 20),
        ("MIMO_V2_FLASH", 222_720, 199_680, 0),
        ("FALCON_H1_1B", 24_576, 0, 24),
        ("DEEPSEEK_OCR", 61_440, 0, 0),
        ("QWEN2_5_OMNI_7B", 57_344, 0, 0),
    ],
)
def test_families_that_say_it_their_own_way(
    name: str, token_bytes: int, windowed: int, states: int
) -> None:
    found = model(getattr(models, name))
    size = kv_size(found)
    assert (size.token_bytes, size.windowed) == (token_bytes, windowed)
    assert found.recurrent_layers == states


@pytest.mark.parametrize(
    ("said", "key"),
    [
        ({"attn_config": {"attn_type": "odd"}}, "kv_n_heads"),
        ({"layer_types": ["odd"] * 4}, "layer_types has the unknown kind 'odd'"),
        ({"kv_lora_rank": 512}, "kv_lora_rank: llama is not known to be MLA"),
        ({"cla_share_factor": 2}, "cla_share_factor: it may decide what is kept"),
        ({"mamba_d_state": 16}, "mamba_d_state: it may decide what is kept"),
        ({"local_attention_window": 128}, "local_attention_window: it may decide"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention: it may decide"),
        ({"per_layer_config": {"0": {"qk_dim": 3}}}, "per_layer_config: {'qk_dim': 3}"),
        ({"model_type": "nemotron_h"}, "its layers may have windows"),
        ({"model_type": "qwen3", "sliding_window": None}, "it does not say num_key_value_heads"),
        (
            {"model_type": "qwen3", "sliding_window": None, "num_key_value_heads": 2},
            "it does not say head_dim",
        ),
        ({"model_type": "olmo3", "sliding_window": 8}, "sliding_window: which layers of olmo3"),
        ({"model_type": "odd"}, "model_type 'odd' is not known here"),
    ],
)
def test_what_is_not_known_is_named(said: dict[str, Any], key: str) -> None:
    with pytest.raises(NotKnown, match=re.escape(key)):
        model({**PLAIN, **said})


def test_what_has_no_bearing_is_no_matter() -> None:
    said = {"attention_bias": True, "first_k_dense_replace": 1, "q_lora_rank": 8, "swa_note": None}
    assert model({**PLAIN, **said}) == model(PLAIN)
    states = {"layer_types": ["mamba"] * 3 + ["attention"], "mamba_d_state": 16}
    assert model({**PLAIN, **states}).recurrent_layers == 3


def test_layers_with_heads_of_their_own_size() -> None:
    gemma4 = {
        **PLAIN,
        "model_type": "gemma4_text",
        "num_key_value_heads": 2,
        "head_dim": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 8,
    }
    made = (Attention(2, 2, 1024), Attention(2, 2, 8, 8))
    assert model(gemma4).attention == made
    # As its class says it.
    sizes = {"1": {"head_dim": 512}, "3": {"head_dim": 512}}
    assert model(gemma4, {**gemma4, "per_layer_config": sizes}).attention == made
    shared = {**gemma4, "num_kv_shared_layers": 2, "per_layer_config": sizes}
    assert model(gemma4, shared).attention == (Attention(1, 2, 1024), Attention(1, 2, 8, 8))


def test_a_class_is_asked_of_what_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**PLAIN, "model_type": "odd"}))
    monkeypatch.setattr(model_file, "filled_by_class", lambda config: None)
    assert main(["size", str(file)]) == 2
    assert "'odd' is not known here, nor has vLLM or transformers here its class" in (
        capsys.readouterr().err
    )
    text = {**PLAIN, "model_type": "odd", "num_key_value_heads": None, "head_dim": None}
    monkeypatch.setattr(model_file, "filled_by_class", lambda config: text)
    assert main(["size", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes_per_token"] == 4 * 2 * 64 * 2
    file.write_text(json.dumps({**LLAMA_8B, "num_hidden_layers": 0}))
    assert main(["size", str(file)]) == 2, "what is wrong is wrong for any class"


def test_a_class_fills_in_what_the_file_leaves_out() -> None:
    pytest.importorskip("transformers")
    # In no table here, and nearly all of it left to the class.
    found = model_file.filled_by_class({"model_type": "vaultgemma", "num_hidden_layers": 4})
    assert found is not None
    with pytest.raises(NotKnown):
        model(found)
    # Of these layers each other one has a window, as the class knows.
    assert [group.layers for group in model(found, found).attention] == [2, 2]


def test_modelopt_says_the_dtype_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    assert kv_size(model_file.read(tmp_path)).token_bytes == 131_072
    quantized = {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}
    said = {"producer": {"name": "modelopt"}, "quantization": quantized}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(said))
    assert kv_size(model_file.read(tmp_path)).token_bytes == 65_536


def test_what_fits_is_counted_in_whole_chunks() -> None:
    size = kv_size(model(LLAMA_8B))
    assert fit(size, (1 << 30) + 1, 256, 8192) == sizing.Fit(tokens=8192, prompts=1)
    assert fit(size, (1 << 30) - 1, 256, 8192).prompts == 0
    assert fit(size, 1 << 30, 256, 8192 + 255).prompts == 1
    assert fit(size, 1 << 30, 256, 255).prompts is None


def test_objects_take_whole_pages_as_in_the_arena() -> None:
    assert sizing.ALIGNMENT == arena.ALIGNMENT
    tiny = model({**PLAIN, "num_hidden_layers": 1, "hidden_size": 6})
    assert kv_size(tiny, tp=2).chunk_bytes(16) == 2 * 4096


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "model_type None is not known here"),
        (
            {**LLAMA_8B, "num_hidden_layers": "12"},
            'num_hidden_layers is "12", not a number above 0',
        ),
        ({**LLAMA_8B, "num_hidden_layers": 2**30}, "are more than any model has"),
        ({**LLAMA_8B, "num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({**LLAMA_8B, "layer_types": ["full_attention"]}, "layer_types has 1 entries for 32"),
        ({**LLAMA_8B, "linear_attn_config": {"kda_layers": [1]}}, "has no list full_attn_layers"),
        (
            {**LLAMA_8B, "linear_attn_config": {"kda_layers": [1], "full_attn_layers": [1]}},
            "does not name each of 32 layers once",
        ),
        ({**LLAMA_8B, "is_encoder_decoder": True}, "encoder-decoder"),
        ({**LLAMA_8B, "compress_ratios": [4] * 32}, "KV that is compressed by layer"),
        ({"model_type": "bert"}, "an encoder, which keeps no KV"),
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
    "num_kv_shared_layers", "text_config", "torch_dtype", "model_type",
    "per_layer_config", "attn_config",
    "linear_attn_config", "hybrid_layer_pattern", "full_attn_idxs", "global_head_dim", "v_head_dim",
    "swa_num_key_value_heads", "swa_head_dim", "multi_query", "layers_block_type", "quantization",
    "full_attn_layers", "kda_layers", "kv_n_heads", "0", "thinker_config",
    "quantization_config", "architectures",
]  # fmt: skip
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 9)
    | st.floats()
    | st.sampled_from(["M*", "mamba", "qwen3", "falcon_h1", "kimi_linear", "gemma4_text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(_KEYS), _VALUES))
@settings(max_examples=150, deadline=None)
def test_any_json_is_a_model_or_one_line(said: dict[str, Any]) -> None:
    try:
        assert kv_size(model({**PLAIN, **said}), "fp8", tp=2).rank_bytes >= 0
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
    assert "24 layers have recurrent state" in capsys.readouterr().out
    hybrid["layer_types"] = ["mamba"] * 32
    (tmp_path / "config.json").write_text(json.dumps(hybrid))
    assert main(["size", str(tmp_path)]) == 2
    assert "no layer of this model has a KV cache" in capsys.readouterr().err
