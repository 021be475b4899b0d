"""Which layers of a model attend to everything, to a window, or keep a state instead of KV.

A config.json says it by a list, a pattern or an interval, each family in its own way.
"""

from dataclasses import dataclass
from typing import Any

from connectors.config_values import ModelConfig, count, listed, model_type, number
from connectors.errors import ConnectorError, NotKnown
from connectors.model_families import ALL_STATES, ALL_WINDOWED, BOTH, INTERVALS, PLAIN

_FULL = ("full_attention", "attention", "full", "deepseek_sparse_attention")
_WINDOWED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_RECURRENT = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "linear")
_WITHOUT_CACHE = ("mlp", "moe")
_PATTERN_SIGNS = {"*": "attention", "M": "mamba"}


@dataclass(frozen=True)
class LayerKind:
    """What one layer keeps: KV of a `window` in tokens, or of all; or a state (`recurrent`)."""

    window: int | None = None
    recurrent: bool = False


FULL = LayerKind()
STATE = LayerKind(recurrent=True)


def layer_kinds(text: ModelConfig, layers: int, by_class: bool = False) -> list[LayerKind]:
    """What each of `layers` layers keeps; one with both KV and a state is there twice.

    `by_class`: the model's class has filled in all that it knows, windows included.

    Raises ConnectorError for what cannot be understood, or is not said.
    """
    if model_type(text) in ALL_STATES:
        return [STATE] * layers
    if model_type(text) in BOTH:
        return [FULL, STATE] * layers
    for read in (_by_names, _by_signs, _by_numbers, _by_indices, _by_interval):
        kinds = read(text, layers)
        if kinds is not None:
            return kinds
    if "sliding_window" not in text and not by_class and model_type(text) not in PLAIN:
        raise NotKnown(f"{model_type(text)}: its layers may have windows, and none is named")
    return _by_window(text, layers)


def _by_names(text: ModelConfig, layers: int) -> list[LayerKind] | None:
    for key in ("layer_types", "layers_block_type"):
        names = listed(text, key, layers)
        if names is not None:
            # The last layers use the KV of earlier ones (Gemma 3n).
            own = layers - count(text, "num_kv_shared_layers")
            return [kind for name in names[:own] for kind in _named(text, key, name)]
    return None


def _named(text: ModelConfig, key: str, name: object) -> list[LayerKind]:
    if name in _WITHOUT_CACHE:
        return []
    if name == "hybrid":
        return [FULL, STATE]
    if name in _FULL:
        return [FULL]
    if name in _RECURRENT:
        return [STATE]
    if isinstance(name, str) and name in _WINDOWED:
        return [LayerKind(window=count(text, _WINDOWED[name]) or None)]
    raise NotKnown(f"{key} has the unknown kind {name!r}")


def _by_signs(text: ModelConfig, layers: int) -> list[LayerKind] | None:
    """Nemotron-H; `-` and `E` are layers without a cache."""
    pattern = text.get("hybrid_override_pattern")
    if not isinstance(pattern, str):
        return None
    names = [_PATTERN_SIGNS[sign] for sign in pattern if sign in _PATTERN_SIGNS]
    return [kind for name in names for kind in _named(text, "hybrid_override_pattern", name)]


def _by_numbers(text: ModelConfig, layers: int) -> list[LayerKind] | None:
    """A number for each layer: of MiniMax 1 attends, of MiMo 1 has the window."""
    if (numbers := listed(text, "attn_type_list", layers)) is not None:
        return [FULL if number == 1 else STATE for number in numbers]
    if (numbers := listed(text, "hybrid_layer_pattern", layers)) is not None:
        window = LayerKind(number(text, "sliding_window_size", default=("sliding_window",)))
        return [window if number == 1 else FULL for number in numbers]
    return None


def _by_indices(text: ModelConfig, layers: int) -> list[LayerKind] | None:
    """The numbers of those that attend; Kimi counts its layers from 1, and lists both kinds."""
    for key in ("attn_layer_indices", "full_attn_idxs"):
        if isinstance(text.get(key), list):
            return [FULL if i in text[key] else STATE for i in range(layers)]
    linear = text.get("linear_attn_config")
    if not isinstance(linear, dict):
        return None
    attending, states = (_members(linear, key) for key in ("full_attn_layers", "kda_layers"))
    if attending | states != set(range(1, layers + 1)) or attending & states:
        raise ConnectorError(f"linear_attn_config does not name each of {layers} layers once")
    return [FULL] * len(attending) + [STATE] * len(states)


def _members(config: dict[str, Any], key: str) -> set[int]:
    members = config.get(key)
    if not isinstance(members, list) or not all(isinstance(each, int) for each in members):
        raise ConnectorError(f"linear_attn_config has no list {key}")
    return set(members)


def _by_interval(text: ModelConfig, layers: int) -> list[LayerKind] | None:
    if interval := count(text, "full_attention_interval"):
        return _every(interval, STATE, layers)
    if period := count(text, "attn_layer_period"):
        offset = count(text, "attn_layer_offset")
        return [FULL if i % period == offset else STATE for i in range(layers)]
    return None


def _by_window(text: ModelConfig, layers: int) -> list[LayerKind]:
    window = count(text, "sliding_window")
    if not window or text.get("use_sliding_window") is False:
        return [FULL] * layers
    interval = (
        count(text, "sliding_window_pattern")
        or count(text, "_sliding_window_pattern")
        or INTERVALS.get(model_type(text), 0)
    )
    if interval:
        return _every(interval, LayerKind(window), layers)
    if "max_window_layers" not in text and model_type(text) not in ALL_WINDOWED:
        raise NotKnown(f"sliding_window: which layers of {model_type(text)} have it?")
    first = count(text, "max_window_layers")
    return [FULL if i < first else LayerKind(window) for i in range(layers)]


def _every(interval: int, between: LayerKind, layers: int) -> list[LayerKind]:
    return [FULL if (i + 1) % interval == 0 else between for i in range(layers)]
