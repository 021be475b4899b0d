"""What a model's config.json says of its KV cache: which layers have one, of which shape.

Key names are those of Hugging Face's configs and how vLLM 0.32 reads them
(`vllm/transformers_utils/model_arch_config_convertor.py`).
"""

from collections import Counter
from dataclasses import dataclass

from connectors.attention_shape import Shape, is_mla, latent_shape, layer_count, of_layer, shape
from connectors.config_keys import not_understood
from connectors.config_values import ModelConfig, count, model_type
from connectors.errors import ConnectorError, NotKnown
from connectors.layer_kinds import LayerKind, layer_kinds
from connectors.model_families import CLASS_DEFAULTS, ENCODERS, KNOWN

# Where a multi-modal model has its language model.
_TEXT = ("thinker_config", "text_config", "llm_config", "language_config", "lm_config")
# Shapes that are not one per model, or not one per token: vLLM computes these in code.
_NOT_COMPUTED = {
    "compress_ratios": "KV that is compressed by layer",
    "block_configs": "layers that differ one by one",
    "indexer_types": "layers that share an indexer",
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


def model(config: ModelConfig, filled: ModelConfig | None = None) -> Model:
    """The model that a parsed config.json describes.

    `filled` is its language model with all that the model's class adds. Raises ConnectorError,
    NotKnown where a class may say more.
    """
    text, by_class = filled or _text_config(config), filled is not None
    _refuse(config, text, by_class)
    layers = layer_count(text)
    kinds = layer_kinds(text, layers, by_class)
    states = sum(kind.recurrent for kind in kinds)
    for key in not_understood(text, states > 0):
        raise NotKnown(f"{key}: it may decide what is kept, and is not known here")
    latent = is_mla(text)
    indexer = count(text, "index_head_dim") if latent else 0
    return Model(
        name=_name(config),
        dtype=_dtype(config, text),
        attention=_groups(text, kinds, layers, by_class),
        latent=latent,
        rope_elements=count(text, "qk_rope_head_dim") if indexer else 0,
        # One fp8 vector, and a float32 scale for each 128 of its elements.
        indexer_bytes=indexer + -(-indexer // 128) * 4 if indexer else 0,
        recurrent_layers=states,
    )


def _groups(
    text: ModelConfig, kinds: list[LayerKind], layers: int, by_class: bool
) -> tuple[Attention, ...]:
    """Layers with equal KV together, those that attend to everything first."""
    found: Counter[tuple[int, Shape]] = Counter()
    for layer, kind in enumerate(kinds):
        if not kind.recurrent:
            said = of_layer(text, layer, len(kinds), layers)
            each = latent_shape(text) if is_mla(text) else shape(said, bool(kind.window), by_class)
            found[kind.window or 0, each] += 1
    return tuple(
        Attention(number, each.kv_heads, each.elements, window or None)
        for (window, each), number in sorted(found.items(), key=lambda item: item[0][0])
    )


def _text_config(config: ModelConfig) -> ModelConfig:
    """The language model of a multi-modal one, with what its class would fill in."""
    for key in _TEXT:
        if isinstance(config.get(key), dict):
            # DeepSeek-OCR's has no type of its own.
            return _text_config({"model_type": config.get("model_type"), **config[key]})
    return CLASS_DEFAULTS.get(model_type(config), {}) | dict(config)


def _refuse(config: ModelConfig, text: ModelConfig, by_class: bool) -> None:
    if config.get("is_encoder_decoder"):
        raise ConnectorError("an encoder-decoder model: its cross attention is not computed")
    if model_type(text) in ENCODERS or text.get("is_causal") is False:
        raise ConnectorError(f"{model_type(text)}: an encoder, which keeps no KV")
    for key, what in _NOT_COMPUTED.items():
        if text.get(key):
            raise ConnectorError(f"{what} ({key}): not computed here")
    if not by_class and model_type(text) not in KNOWN:
        raise NotKnown(f"model_type {text.get('model_type')!r} is not known here")


def _name(config: ModelConfig) -> str:
    architectures = config.get("architectures")
    if isinstance(architectures, list) and architectures:
        return str(architectures[0])
    return str(config.get("model_type") or "unknown model")


def _dtype(config: ModelConfig, text: ModelConfig) -> str:
    """What `auto` means to vLLM: the model's dtype, where float32 becomes float16.

    A checkpoint with scales for its KV says so, and means fp8.
    """
    quantized = config.get("quantization_config")
    if isinstance(quantized, dict):
        # ModelOpt's own file has it one level deeper.
        inner = quantized.get("quantization")
        quantized = inner if isinstance(inner, dict) else quantized
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
