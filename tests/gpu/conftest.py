"""Tests of this tier need an NVIDIA GPU and are skipped, with that reason, where there is none."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
DRIVER = Path("/dev/nvidiactl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DRIVER.exists():
        return
    skip = pytest.mark.skip(reason=f"no NVIDIA GPU here ({DRIVER} does not exist)")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)
