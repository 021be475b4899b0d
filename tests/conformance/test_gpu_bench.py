"""What bench.gpu measures, without a GPU: a stub is the driver, workers and inference on CPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the workers of the bench have tensors")
pytest.importorskip("lmcache", reason="the stock client is not installed")

from bench import crowd
from bench.gpu import background, interference, transfers
from bench.gpu.shapes import Shape
from tests.support.fake_gpu import UUID
from tests.support.server import REPO, Server
from tests.support.stub_libraries import stub_driver

TINY = Shape("tiny", 4, 2, 1, request_bytes=1 << 20)
SETTING = interference.Setting(
    seconds=0.2,
    settle=0.0,
    device="cpu",
    inference=(2, 64),
    prompts=(2, 64),
    shapes=(("short", TINY),),
    tp8=replace(TINY, request_bytes=4 << 20),
)


def test_figures_of_the_driver(tmp_path: Path) -> None:
    environment = os.environ | stub_driver(tmp_path) | {"CUDA_VISIBLE_DEVICES": UUID}
    output = subprocess.run(
        [sys.executable, "-m", "tests.support.stub_bench"],
        cwd=REPO, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    lines: list[dict[str, Any]] = list(map(json.loads, output.splitlines()))
    found = {line["figure"]: line for line in lines if "figure" in line}

    assert set(found) == {
        *("link_store", "link_load", "link_both", "far_store", "far_load"),
        *("batch_call", "event_p50", "event_p99"),
    }
    for name in ("link_store", "link_load", "link_both", "batch_call"):
        assert found[name]["measured"] > 0
    assert found["far_load"]["measured"] is None
    assert found["far_load"]["note"]
    assert {"pieces": 3} in lines
    rows = [(r["run_kib"], r["runs"], r["direction"]) for r in lines if "run_kib" in r]
    assert rows == [(4, 16, "store"), (4, 16, "load")]


@pytest.fixture
def without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes are forks of one that has imported everything: there is no CUDA to break."""
    for module in (background, transfers):
        monkeypatch.setattr(module, "PROCESSES", crowd._PROCESSES)


@pytest.mark.usefixtures("without_cuda")
def test_inference_beside_transfers(new_server: Callable[..., Server]) -> None:
    server = new_server(chunk_size=256).start()
    found = {finding.key: finding for finding in interference.measure(server.url, SETTING)}

    rates = [f"tp8_{phase}_{how}" for phase in ("load", "store") for how in ("idle", "busy")]
    costs = [f"short_{speed}_p{p}" for speed in ("slow", "full") for p in (50, 99)]
    assert list(found) == rates + costs
    assert all(found[key].value for key in rates)
    assert all(" GB/s" in found[key].note for key in costs)
    server.assert_no_leases()
    assert not server.instances()


@pytest.mark.usefixtures("without_cuda")
def test_a_process_in_the_background_that_fails_is_an_error(
    new_server: Callable[..., Server],
) -> None:
    server = new_server().start()  # its chunks are not those of the bench
    failing = background.Background(interference.traffic, server.url, TINY, None, "cpu")
    with pytest.raises(background.BenchError, match="died"), failing:
        pass
