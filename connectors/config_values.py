"""Numbers of a model's config.json, or what is wrong with them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from connectors.errors import ConnectorError, NotKnown

ModelConfig = Mapping[str, Any]


def number(config: ModelConfig, *keys: str, default: Sequence[str] = ()) -> int:
    """The first of `keys`, or else of `default`, that is there: a number above 0.

    Raises ConnectorError.
    """
    for key in (*keys, *default):
        value = config.get(key)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise ConnectorError(f"{key} is {json.dumps(value)}, not a number above 0")
        return value
    raise NotKnown(f"it does not say {keys[0]}: not a config.json, or of an unknown kind")


def count(config: ModelConfig, key: str) -> int:
    """A number; 0 where there is none. Raises ConnectorError."""
    return number(config, key) if config.get(key) not in (None, False, 0) else 0


def listed(config: ModelConfig, key: str, length: int) -> list[Any] | None:
    """A list with an entry for each of `length` layers; None where there is none.

    Raises ConnectorError.
    """
    value = config.get(key)
    if not isinstance(value, list):
        return None
    if len(value) != length:
        raise ConnectorError(f"{key} has {len(value)} entries for {length} layers")
    return value


def model_type(config: ModelConfig) -> str:
    return str(config.get("model_type"))
