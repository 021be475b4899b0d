"""The first ten minutes on a GPU, rehearsed: a stub is the driver, and Python has numpy alone."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu_wheels
from tests.gpu.quick.steps import STEPS
from tests.support.bare_python import bare_python, make_wheels
from tests.support.fake_gpu import UUID
from tests.support.server import REPO
from tests.support.stub_libraries import stub_driver

TENSORS = {7, 12}  # steps that need torch
SERVED = {5, 6, 8, 9, 11}  # steps that need packages of the server


@dataclass
class Run:
    """What `python -m tests.gpu.quick` has made of it."""

    code: int
    verdicts: dict[int, str]
    lines: list[dict[str, Any]]
    table: str


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bare_python(tmp_path_factory.mktemp("bare"))


@pytest.fixture
def quick(python: Path, tmp_path: Path) -> Callable[..., Run]:
    """Runs it on a GPU that is none; `faults` are those of the stub."""

    def run(wheels: Path, faults: str = "") -> Run:
        stub, output = stub_driver(tmp_path), tmp_path / "out"
        Path(stub["LIBCUDA_STUB_FAULTS"]).write_text(faults)
        environment = {**os.environ, **stub, "CUDA_VISIBLE_DEVICES": UUID}
        environment.pop("PYTHONPATH", None)
        command = [str(python), "-m", "tests.gpu.quick", "--small", "--seconds", "3600"]
        command += ["--wheels", str(wheels), "--output", str(output)]
        code = subprocess.run(
            command, cwd=REPO, env=environment, stdout=subprocess.DEVNULL, timeout=500
        ).returncode
        (folder,) = output.iterdir()
        lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        verdicts = {line["step"]: line["verdict"] for line in lines}
        return Run(code, verdicts, lines, (folder / "table.md").read_text())

    return run


def test_with_wheels_of_what_the_server_needs(quick: Callable[..., Run], tmp_path: Path) -> None:
    """Everything but what needs torch. Rates and times are missed where there is no GPU."""
    needs = [*gpu_wheels.server_needs(), "pyzmq"]
    make_wheels(tmp_path / "wheels", needs, gpu_wheels.LEFT_OUT)
    run = quick(tmp_path / "wheels")
    assert run.code == 0, run.table
    assert run.verdicts.keys() == {step.number for step in STEPS}
    for number, verdict in run.verdicts.items():
        assert verdict in ({"skipped"} if number in TENSORS else {"ok", "MISSED"}), run.table
    parts = [part for line in run.lines for part in line["parts"]]
    assert not [p for p in parts if p["verdict"] == "MISSED" and "measured" not in p], run.table
    assert sum("runs of" in part["what"] for part in parts) > 10
    assert "Stub 7, CUDA 12.8, 132 SMs" in run.table


def test_without_wheels(quick: Callable[..., Run]) -> None:
    """What needs the driver alone; after a batch that crashes others begin none."""
    run = quick(Path("/none"), faults="cuMemcpyBatchAsync -2")
    assert run.code == 1
    assert run.verdicts[4] == "CRASHED"
    skipped = {step for step, verdict in run.verdicts.items() if verdict == "skipped"}
    assert skipped == SERVED | TENSORS
    whys = {line["step"]: line["why"] for line in run.lines}
    assert "no blake3" in whys[5]
    assert "SIGABRT, after: on the legacy stream" in whys[4]
    assert run.verdicts[10] in ("ok", "MISSED"), whys
    assert "in batches" not in run.table and "one by one" in run.table
