"""The client libraries of backends, which only those who use a backend need to have."""

import importlib
from typing import Any

from sidecar.tiers.base import AdapterUnusable


def library(module: str, extra: str) -> Any:
    """The imported `module`, which the extra `extra` of this package brings.

    Raises AdapterUnusable.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise AdapterUnusable(f"{error}: pip install 'kv-sidecar[{extra}]'") from None
