"""NIXL's Python API. It is imported when it is first needed: it is optional, and takes a second."""

import importlib
import logging
import os
from collections.abc import Mapping
from typing import Any


class NixlMissing(Exception):
    """NIXL cannot be imported; the text says what to install."""


def load() -> Any:
    """The API. Its log lines go where the program's do, warnings and worse. Raises NixlMissing."""
    os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")  # the library below Python reads it, too
    try:
        api = importlib.import_module("nixl._api")
    except ImportError as error:
        raise NixlMissing(f"NIXL cannot be imported ({error}): install kv-sidecar[nixl]") from error
    logger = logging.getLogger("nixl")
    logger.handlers.clear()
    logger.propagate = True
    return api


def failures(api: Any) -> tuple[type[Exception], ...]:
    """What NIXL raises: classes without a common base of their own."""
    names = [
        name for name in dir(api.nixlBind) if name.startswith("nixl") and name.endswith("Error")
    ]
    return tuple(getattr(api.nixlBind, name) for name in names)


def new_agent(api: Any, backend: str, params: Mapping[str, str]) -> Any:
    """An agent with this one backend. Raises one of `failures`."""
    # One lock in NIXL over each of its calls, not over the transfers.
    strict = api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
    # No backends: NIXL would start UCX otherwise.
    config = api.nixl_agent_config(backends=[], sync_mode=strict)
    agent = api.nixl_agent("kv-sidecar", config)
    agent.create_backend(backend, dict(params))
    return agent
