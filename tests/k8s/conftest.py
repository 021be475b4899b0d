"""Tests of this tier render with the real kubectl, and are skipped where there is none."""

from pathlib import Path

import pytest

from k8s.render import kubectl

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if kubectl() is not None:
        return
    skip = pytest.mark.skip(reason="kubectl is not installed, nor npm to bring it")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(skip)
