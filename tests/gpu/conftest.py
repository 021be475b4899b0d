"""Tests of this tier need an NVIDIA GPU and are skipped, with that reason, where there is none.

The worker is this process, made of the stock client; the server and its child are others.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.conformance.conftest import rig

__all__ = ["rig"]

HERE = Path(__file__).parent
DRIVER = Path("/dev/nvidiactl")
# Without torch and the stock client the others run all the same.
WITH_TENSORS = (
    *("test_crashes.py", "test_files.py", "test_ordering.py", "test_transfers.py"),
    "test_vllm.py",
)
if any(importlib.util.find_spec(name) is None for name in ("torch", "lmcache")):
    collect_ignore = list(WITH_TENSORS)


def missing() -> str | None:
    """Why these tests cannot run here."""
    return None if DRIVER.exists() else f"no NVIDIA GPU here ({DRIVER} does not exist)"


def no_cuda() -> str | None:
    """The same for those that have tensors."""
    import torch

    return None if torch.cuda.is_available() else "needs a CUDA build of torch"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    for item in ours:
        reason = missing() or (no_cuda() if item.path.name in WITH_TENSORS else None)
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))
