"""What a model's config.json says of its KV cache: which layers have one, of which shape.

Key names are those of Hugging Face's configs and how vLLM 0.32 reads them
(`vllm/transformers_utils/model_arch_config_convertor.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors.errors import ConnectorError
from connectors.layer_kinds import layer_kinds

Config = Mapping[str, Any]

# What config.json leaves out where it is the default of the model's class in transformers.
_CLASS_DEFAULTS: dict[str, dict[str, int]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "sliding_window": 4096,
    },
}
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = (
    "n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num",
    "num_attention_groups",
)  # fmt: skip
_WIDTH = ("hidden_size", "n_embd", "d_model")
_MOST_LAYERS = 10_000
# Shapes that are not one per model, or not one per token: vLLM computes these in code.
_NOT_COMPUTED = {
    "compress_ratios": "KV that is compressed by layer",
    "global_head_dim": "head sizes that differ by layer",
    "block_configs": "layers that differ one by one",
}


@dataclass(frozen=True)
class Attention:
    """Layers with equal KV: `elements` of K and V together per head and token.

    `window` is in tokens, None for full attention.
    """

    layers: int
    kv_heads: int
    elements: int
    window: int | None = None


@dataclass(frozen=True)
class Model:
    """The KV cache of a model; `dtype` is that of its KV, where the worker is not told another.

    `latent`: MLA, one vector for all heads, so every rank of a tensor-parallel group has the
    same. `rope_elements` of it stay in the model's dtype where the rest is fp8, and
    `indexer_bytes` a token and layer are added: sparse attention, 0 for others.
    `recurrent_layers` have a state instead.
    """

    name: str
    dtype: str
    attention: tuple[Attention, ...]
    latent: bool = False
    rope_elements: int = 0
    indexer_bytes: int = 0
    recurrent_layers: int = 0


def read(path: Path) -> Model:
    """The model of a config.json, or of the directory that holds one.

    Raises ConnectorError, in one line, for what is no such file or says too little.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConnectorError(f"cannot read {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConnectorError(f"{file} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise ConnectorError(f"{file} is not a model's config.json: it holds no object")
    try:
        return model(config)
    except ConnectorError as error:
        raise ConnectorError(f"{file}: {error}") from None


def is_latent(model: str) -> bool:
    """Whether the directory `model` says MLA; False where there is no config.json to read."""
    try:
        return read(Path(model)).latent
    except ConnectorError:
        return False


def model(config: Config) -> Model:
    """The model that a parsed config.json describes. Raises ConnectorError."""
    text = _text_config(config)
    _refuse(config, text)
    latent, rope = _positive(text, "kv_lora_rank"), _positive(text, "qk_rope_head_dim")
    # The one model that compresses by kv_lora_rank but caches what it expands to.
    if latent and rope and text.get("model_type") != "minicpm3":
        return _latent_model(config, text, latent, rope)
    kinds = layer_kinds(text, _layers(text))
    kv_heads = _number(text, _KV_HEADS, default=_HEADS)
    elements = 2 * _head_size(text)
    windows = [kind.window for kind in kinds if not kind.recurrent]
    return Model(
        name=_name(config),
        dtype=_dtype(config, text),
        attention=tuple(
            Attention(windows.count(window), kv_heads, elements, window)
            for window in sorted(set(windows), key=lambda window: (window is not None, window))
        ),
        recurrent_layers=sum(kind.recurrent for kind in kinds),
    )


def _latent_model(config: Config, text: Config, latent: int, rope: int) -> Model:
    kinds = layer_kinds(text, _layers(text))
    layers = sum(not kind.recurrent for kind in kinds)
    indexer = _positive(text, "index_head_dim")
    return Model(
        name=_name(config),
        dtype=_dtype(config, text),
        attention=(Attention(layers, 1, latent + rope),),
        latent=True,
        rope_elements=rope if indexer else 0,
        # One fp8 vector, and a float32 scale for each 128 of its elements.
        indexer_bytes=indexer + -(-indexer // 128) * 4 if indexer else 0,
        recurrent_layers=len(kinds) - layers,
    )


def _text_config(config: Config) -> Config:
    """The language model of a multi-modal one, with what its class would fill in."""
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict):
            config = config[key]
            break
    return _CLASS_DEFAULTS.get(str(config.get("model_type")), {}) | dict(config)


def _refuse(config: Config, text: Config) -> None:
    if config.get("is_encoder_decoder"):
        raise ConnectorError("an encoder-decoder model: its cross attention is not computed")
    for key, what in _NOT_COMPUTED.items():
        if text.get(key):
            raise ConnectorError(f"{what} ({key}): not computed here")


def _layers(text: Config) -> int:
    layers = _number(text, _LAYERS)
    if layers > _MOST_LAYERS:
        raise ConnectorError(f"{layers} layers are more than any model has")
    return layers


def _head_size(text: Config) -> int:
    if text.get("head_dim") is not None:
        return _number(text, ("head_dim",))
    return _number(text, _WIDTH) // _number(text, _HEADS)


def _positive(text: Config, key: str) -> int:
    return 0 if text.get(key) is None else _number(text, (key,))


def _number(text: Config, keys: Sequence[str], default: Sequence[str] = ()) -> int:
    """The first of `keys` that is there."""
    for key in keys:
        value = text.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise ConnectorError(f"{key} is {json.dumps(value)}, not a number above 0")
        return value
    if default:
        return _number(text, default)
    raise ConnectorError(f"it does not say {keys[0]}: not a config.json, or of an unknown kind")


def _name(config: Config) -> str:
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0])
    return str(config.get("model_type") or "unknown model")


def _dtype(config: Config, text: Config) -> str:
    """What `auto` means to vLLM: the model's dtype, where float32 becomes float16.

    A checkpoint with scales for its KV says so, and means fp8.
    """
    quantized = config.get("quantization_config")
    if isinstance(quantized, dict):
        if quantized.get("kv_cache_scheme"):
            return "fp8"
        if quantized.get("kv_cache_quant_algo"):
            return str(quantized["kv_cache_quant_algo"]).lower()
    for place in (config, text):
        dtype = place.get("dtype") or place.get("torch_dtype")
        if dtype:
            name = str(dtype).removeprefix("torch.")
            return "float16" if name == "float32" else name
    return "float16"
