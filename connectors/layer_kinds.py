"""Which layers of a model attend to everything, to a window, or keep a state instead of KV.

A config.json says it by a list, a pattern or an interval, each family in its own way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from connectors.errors import ConnectorError

Config = Mapping[str, Any]

_FULL = ("full_attention", "attention", "hybrid", "full", "deepseek_sparse_attention")
_WINDOWED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_RECURRENT = ("linear_attention", "mamba", "mamba2", "conv", "recurrent", "linear")
_WITHOUT_CACHE = ("mlp", "moe")
# Where only the class knows it: of each so many layers, the last attends to everything.
_INTERVAL_OF_CLASS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}


@dataclass(frozen=True)
class LayerKind:
    """One layer with a cache: `window` in tokens, or all; `recurrent` has a state, no KV."""

    window: int | None = None
    recurrent: bool = False


FULL = LayerKind()
STATE = LayerKind(recurrent=True)


def layer_kinds(text: Config, layers: int) -> list[LayerKind]:
    """Of each of `layers` layers that has KV of its own or a state.

    Raises ConnectorError for what cannot be understood.
    """
    for key in ("layer_types", "layers_block_type"):
        if isinstance(text.get(key), list):
            return _listed(text, key, layers)
    if isinstance(text.get("hybrid_override_pattern"), str):
        signs = {"*": [FULL], "M": [STATE]}
        return [kind for sign in text["hybrid_override_pattern"] for kind in signs.get(sign, [])]
    if isinstance(text.get("attn_type_list"), list):
        return [FULL if kind == 1 else STATE for kind in text["attn_type_list"]]
    if isinstance(text.get("attn_layer_indices"), list):
        return [FULL if i in text["attn_layer_indices"] else STATE for i in range(layers)]
    return _by_interval(text, layers)


def _listed(text: Config, key: str, layers: int) -> list[LayerKind]:
    names = text[key]
    if len(names) != layers:
        raise ConnectorError(f"{key} has {len(names)} entries for {layers} layers")
    # The last layers use the KV of earlier ones (Gemma 3n).
    own = layers - _whole(text, "num_kv_shared_layers")
    return [_kind(text, key, name) for name in names[:own] if name not in _WITHOUT_CACHE]


def _kind(text: Config, key: str, name: object) -> LayerKind:
    if name in _FULL:
        return FULL
    if name in _RECURRENT:
        return STATE
    if isinstance(name, str) and name in _WINDOWED:
        return LayerKind(window=_whole(text, _WINDOWED[name]) or None)
    raise ConnectorError(f"{key} has the unknown kind {name!r}")


def _by_interval(text: Config, layers: int) -> list[LayerKind]:
    if interval := _whole(text, "full_attention_interval"):
        return _every(interval, STATE, layers)
    if period := _whole(text, "attn_layer_period"):
        offset = _whole(text, "attn_layer_offset")
        return [FULL if i % period == offset else STATE for i in range(layers)]
    window = _whole(text, "sliding_window")
    if not window or text.get("use_sliding_window") is False:
        return [FULL] * layers
    interval = (
        _whole(text, "sliding_window_pattern")
        or _whole(text, "_sliding_window_pattern")
        or _INTERVAL_OF_CLASS.get(str(text.get("model_type")), 0)
    )
    if interval:
        return _every(interval, LayerKind(window), layers)
    first = _whole(text, "max_window_layers")
    return [FULL if i < first else LayerKind(window) for i in range(layers)]


def _every(interval: int, between: LayerKind, layers: int) -> list[LayerKind]:
    return [FULL if (i + 1) % interval == 0 else between for i in range(layers)]


def _whole(text: Config, key: str) -> int:
    """A count; 0 where there is none."""
    value = text.get(key)
    if value is None or value is False:
        return 0
    if not isinstance(value, int) or value < 0:
        raise ConnectorError(f"{key} is {value!r}, not a whole number")
    return value
