"""The files in configs/ are what `kv-sidecar serve --config` takes."""

from pathlib import Path

import pytest

from sidecar.config import load

CONFIGS = Path(__file__).parents[2] / "configs"
L2 = {"nvme": "fs", "s3": "s3", "mooncake": "mooncake_store"}
PROFILES = ["aggregated", "cpu-demo", "disaggregated", "mooncake", "nvme", "s3"]


def test_every_file_is_known() -> None:
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted([*PROFILES, "sidecar"])


@pytest.mark.parametrize("name", PROFILES)
def test_profile_loads(name: str) -> None:
    path = CONFIGS / f"{name}.yaml"
    loaded = load(["--config", str(path)], {})

    assert loaded.warnings == []
    assert loaded.config.l1_size_gb >= 1
    assert loaded.config.chunk_size % 128 == 0
    assert bool(loaded.config.l2_adapter) == (name in L2)
    assert f"--config configs/{name}.yaml" in path.read_text()
    if name in L2:
        assert f"type: {L2[name]}\n" in path.read_text()
