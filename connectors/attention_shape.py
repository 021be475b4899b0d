"""KV heads and their sizes: what one layer of a model keeps of one token."""

from dataclasses import dataclass
from typing import Any

from connectors.config_values import ModelConfig, count, model_type, number
from connectors.errors import ConnectorError, NotKnown
from connectors.model_families import ALL_HEADS, DERIVED_HEAD_SIZE, EXPANDED, LATENT

LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
KV_HEADS = (
    "num_key_value_heads", "n_head_kv", "num_kv_heads", "n_kv_heads", "multi_query_group_num",
    "num_attention_groups",
)  # fmt: skip
WIDTH = ("hidden_size", "n_embd", "d_model")
HEAD_SIZE = ("head_dim", "hidden_size_per_head", "attention_head_dim", "kv_channels")
_MOST_LAYERS = 10_000


@dataclass(frozen=True)
class Shape:
    """`elements` of K and V together, of each of `kv_heads`."""

    kv_heads: int
    elements: int


def layer_count(text: ModelConfig) -> int:
    """Layers with attention or a state. Raises ConnectorError."""
    kinds = text.get("layers_block_type")
    if isinstance(kinds, list) and all(text.get(key) is None for key in LAYERS):
        layers = len(kinds)  # as Nemotron-H's class counts them
    else:
        layers = number(text, *LAYERS)
    if layers > _MOST_LAYERS:
        raise ConnectorError(f"{layers} layers are more than any model has")
    # Each has two attentions.
    return 2 * layers if model_type(text) == "longcat_flash" else layers


def is_mla(text: ModelConfig) -> bool:
    """Whether a layer keeps one latent for all heads (MLA). Raises ConnectorError."""
    if not count(text, "kv_lora_rank") or model_type(text) in EXPANDED:
        return False
    if model_type(text) not in LATENT:
        raise NotKnown(f"kv_lora_rank: {model_type(text)} is not known to be MLA")
    return True


def latent_shape(text: ModelConfig) -> Shape:
    """MLA's latent and its part with positions."""
    return Shape(1, number(text, "kv_lora_rank") + count(text, "qk_rope_head_dim"))


def of_layer(text: ModelConfig, layer: int, kept: int, layers: int) -> ModelConfig:
    """What is said of one of `kept` layers, by the config's `per_layer_config` too (Gemma 4).

    Raises ConnectorError for what cannot be understood.
    """
    overrides = text.get("per_layer_config")
    if not overrides:
        return text
    # The last layers may use the KV of earlier ones, all others are in their places.
    if not isinstance(overrides, dict) or kept != layers - count(text, "num_kv_shared_layers"):
        raise NotKnown("per_layer_config: which layers it speaks of is not known here")
    said: Any = next((said for key, said in overrides.items() if key == f"{layer:0{len(key)}}"), {})
    if not isinstance(said, dict) or not said.keys() <= {"head_dim", "num_key_value_heads"}:
        raise NotKnown(f"per_layer_config: {said!r} is not known here")
    return {**text, **said}


def shape(text: ModelConfig, windowed: bool, by_class: bool = False) -> Shape:
    """Of a layer with a window, or of one without: some families have other heads there.

    `by_class`: the model's class has filled in all that it knows. Raises ConnectorError.
    """
    if windowed and text.get("swa_num_key_value_heads") is not None:
        heads = number(text, "swa_num_key_value_heads")
        size = number(text, "swa_head_dim")
        return Shape(heads, size + (count(text, "swa_v_head_dim") or size))
    heads, size = _kv_heads(text, by_class), _head_size(text, by_class)
    if not windowed and count(text, "global_head_dim"):
        size = count(text, "global_head_dim")
        if text.get("attention_k_eq_v"):
            heads = count(text, "num_global_key_value_heads") or heads
    return Shape(heads, size + _value_size(text, size))


def _kv_heads(text: ModelConfig, by_class: bool) -> int:
    inner = text.get("attn_config")
    if isinstance(inner, dict) and inner:
        return number(inner, "kv_n_heads")
    if text.get("multi_query") and not text.get("new_decoder_architecture"):
        return 1
    if text.get("multi_query_attention") is False:
        return number(text, *HEADS)
    unsaid = by_class or "num_key_value_heads" in text or model_type(text) in ALL_HEADS
    return number(text, *KV_HEADS, default=HEADS if unsaid else ())


def _head_size(text: ModelConfig, by_class: bool) -> int:
    if model_type(text) in EXPANDED:
        return number(text, "qk_nope_head_dim") + number(text, "qk_rope_head_dim")
    for key in HEAD_SIZE:
        # A class may fill in 0 for "not said", and DeepSeek's another size than is used without
        # MLA.
        if text.get(key) not in (None, 0) and model_type(text) not in LATENT:
            return number(text, key)
    if not by_class and model_type(text) not in DERIVED_HEAD_SIZE:
        return number(text, "head_dim")
    return number(text, *WIDTH) // number(text, *HEADS)


def _value_size(text: ModelConfig, size: int) -> int:
    """vLLM pads V to K, but for families whose config has a window with heads of its own."""
    if "swa_num_key_value_heads" in text:
        return count(text, "v_head_dim") or size
    return size
