"""Tests of this tier need an NVIDIA GPU and are skipped, with that reason, where there is none.

The worker is this process, made of the stock client; the server and its child are others.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.conftest import rig

__all__ = ["rig"]

HERE = Path(__file__).parent
DRIVER = Path("/dev/nvidiactl")


def missing() -> str | None:
    """Why these tests cannot run here."""
    if not DRIVER.exists():
        return f"no NVIDIA GPU here ({DRIVER} does not exist)"
    import torch

    return None if torch.cuda.is_available() else "needs a CUDA build of torch"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if HERE in item.path.parents]
    reason = missing() if ours else None
    if reason is not None:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason=reason))
