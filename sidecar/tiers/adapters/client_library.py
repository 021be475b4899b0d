"""The client libraries of backends, which only those who use a backend need to have."""

import importlib
from typing import Any

from sidecar import shared_libraries
from sidecar.tiers.base import AdapterUnusable


def library(module: str, extra: str) -> Any:
    """The imported `module`, which the extra `extra` of this package brings.

    Raises AdapterUnusable.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise AdapterUnusable(f"{error}: install kv-sidecar[{extra}]") from None
    except ImportError as error:
        # The loader's own words name one library, the first that it misses.
        reason = shared_libraries.lack(module.partition(".")[0])
        raise AdapterUnusable(reason or f"{module} cannot be loaded: {error}") from None
