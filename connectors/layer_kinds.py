"""Which layers of a model attend to everything, to a window, or keep a state instead of KV.

A config.json says it by a list, a pattern or an interval, each family in its own way.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from connectors.errors import ConnectorError

_FULL = {"full_attention", "attention", "hybrid", "full", "deepseek_sparse_attention"}
_WINDOWED = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_RECURRENT = {"linear_attention", "mamba", "mamba2", "conv", "recurrent", "linear"}
_WITHOUT_CACHE = {"mlp", "moe"}
# Where only the class knows it: of each so many layers, the last attends to everything.
_INTERVAL_OF_CLASS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}


@dataclass(frozen=True)
class LayerKind:
    """One layer with a cache: `window` in tokens, or all; `recurrent` has a state, no KV."""

    window: int | None = None
    recurrent: bool = False


FULL = LayerKind()
STATE = LayerKind(recurrent=True)


def layer_kinds(text: Mapping[str, Any], layers: int) -> list[LayerKind]:
    """Of each of `layers` layers that has KV of its own or a state.

    Raises ConnectorError for a kind that is unknown.
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


def _listed(text: Mapping[str, Any], key: str, layers: int) -> list[LayerKind]:
    names = text[key]
    if len(names) != layers:
        raise ConnectorError(f"{key} has {len(names)} entries for {layers} layers")
    # The last layers use the KV of earlier ones (Gemma 3n).
    own = layers - (text.get("num_kv_shared_layers") or 0)
    return [_kind(text, key, name) for name in names[:own] if name not in _WITHOUT_CACHE]


def _kind(text: Mapping[str, Any], key: str, name: object) -> LayerKind:
    if name in _FULL:
        return FULL
    if name in _RECURRENT:
        return STATE
    if name in _WINDOWED:
        window = text.get(_WINDOWED[str(name)])
        return LayerKind(window=window) if isinstance(window, int) else FULL
    raise ConnectorError(f"{key} has the unknown kind {name!r}")


def _by_interval(text: Mapping[str, Any], layers: int) -> list[LayerKind]:
    if text.get("full_attention_interval"):
        return _every(text["full_attention_interval"], STATE, layers)
    if text.get("attn_layer_period"):
        period, offset = text["attn_layer_period"], text.get("attn_layer_offset") or 0
        return [FULL if i % period == offset else STATE for i in range(layers)]
    window = text.get("sliding_window")
    if not isinstance(window, int) or text.get("use_sliding_window") is False:
        return [FULL] * layers
    interval = (
        text.get("sliding_window_pattern")
        or text.get("_sliding_window_pattern")
        or _INTERVAL_OF_CLASS.get(str(text.get("model_type")))
    )
    if isinstance(interval, int):
        return _every(interval, LayerKind(window=window), layers)
    first = text.get("max_window_layers") or 0
    return [FULL if i < first else LayerKind(window=window) for i in range(layers)]


def _every(interval: int, between: LayerKind, layers: int) -> list[LayerKind]:
    return [FULL if (i + 1) % interval == 0 else between for i in range(layers)]
