"""Each step of the first ten minutes on a GPU made to go wrong: the others still run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts import gpu_wheels
from tests.gpu.quick import cli, wheels
from tests.gpu.quick.checks import stock_client
from tests.gpu.quick.report import Report, WrongBytes
from tests.gpu.quick.steps import SERVER, STEPS
from tests.support.server import REPO, wait_until

HANGS_FOR = 1.0
KILLED = """
import sys
from dataclasses import replace
from tests.gpu.quick import cli, steps
changes = {"module": "tests.support.quick_step", "needs": (), "seconds": 600}
cli.main(["--output", sys.argv[1]], [replace(step, **changes) for step in steps.STEPS])
"""
# How a step goes, and what is said of it.
WAYS = {
    "well": ("ok", ""),
    "fail": ("CRASHED", "RuntimeError: a call that fails"),
    "wrong": ("WRONG BYTES", "some bytes"),
    "hang": ("HUNG", "no end in 1 s"),
    "crash": ("CRASHED", "SIGABRT, after: it has begun"),
    "miss": ("MISSED", "something measured"),
    "skip": ("skipped", "there is none here"),
}


def run(ways: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, Path]:
    """All steps, each in one of these ways: the exit code, and where the findings are."""
    monkeypatch.setenv("QUICK_STEPS", " ".join(ways))
    steps = [
        replace(
            step, module="tests.support.quick_step", needs=(),
            seconds=HANGS_FOR if way == "hang" else 120,
        )
        for step, way in zip(STEPS, ways, strict=True)
    ]  # fmt: skip
    code = cli.main(["--output", str(folder), "--seconds", "600"], steps)
    (found,) = folder.iterdir()
    return code, found


def lines_in(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("turn", range(len(WAYS)))
def test_whatever_the_others_do_each_step_is_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    turn: int,
) -> None:
    """In seven turns each goes each way."""
    ways = [list(WAYS)[(step.number + turn) % len(WAYS)] for step in STEPS]
    if ways[0] == "skip":
        ways[0] = "well"  # without a driver nothing is run: the next test
    code, folder = run(ways, tmp_path, monkeypatch)
    assert code == 1
    lines, table = lines_in(folder), (folder / "table.md").read_text()
    for line, way in zip(lines, ways, strict=True):
        verdict, why = WAYS[way]
        assert line["verdict"] == verdict and line["why"].startswith(why), line
        text = f"{verdict}: {line['why']}" if why else verdict
        assert f"| {text} |" in table
    printed = capsys.readouterr().out
    assert table in printed and all(json.dumps(line) in printed for line in lines)


@pytest.mark.parametrize(
    ("first", "code", "others"), [("well", 0, "ok"), ("miss", 0, "ok"), ("skip", 2, "skipped")]
)
def test_exit_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, code: int, others: str
) -> None:
    """A figure that is missed is no failure; without a driver there is nothing to be run."""
    ways = [first, *["well"] * (len(STEPS) - 1)]
    found, folder = run(ways, tmp_path, monkeypatch)
    assert found == code
    assert {line["verdict"] for line in lines_in(folder)[1:]} == {others}


def test_no_time_is_left(tmp_path: Path) -> None:
    code = cli.main(["--output", str(tmp_path), "--seconds", "0", "--from", "3"])
    (folder,) = tmp_path.iterdir()
    lines = lines_in(folder)
    assert [line["step"] for line in lines] == list(range(3, len(STEPS)))
    assert lines[0]["why"] == "no time left: --from 3"
    assert code == 2


def test_a_step_that_the_total_cuts_off_has_not_hung(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own limit was longer. What it had found is kept."""
    monkeypatch.setenv("QUICK_STEPS", "hang hang")
    steps = [
        replace(step, module="tests.support.quick_step", needs=(), seconds=600)
        for step in STEPS[:2]
    ]
    code = cli.main(["--output", str(tmp_path), "--seconds", "12"], steps)
    (folder,) = tmp_path.iterdir()
    first, second = lines_in(folder)
    assert [part["what"] for part in first["parts"]] == ["it has begun"]
    for line in (first, second):
        assert (line["verdict"], line["why"]) == ("skipped", f"no time left: --from {line['step']}")
    assert code == 2


def test_an_older_python_gets_one_line() -> None:
    code = f"""
import runpy, sys
sys.path.insert(0, {str(REPO)!r})
sys.version_info, sys.version = (3, 10, 4), "3.10.4 (main)"
runpy.run_module("tests.gpu.quick", run_name="__main__")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (result.stdout, result.stderr) == ("this needs Python 3.11 or newer, not 3.10.4\n", "")
    assert result.returncode == 2


STOCK = """
def test_well(): pass
def test_fails(): assert 1 == 2
def test_differs(): assert {same}, "bytes differ"
"""


@pytest.mark.parametrize("same", [True, False])
def test_what_is_made_of_the_stock_clients_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """By pytest itself; torch is made to see a GPU."""
    differing = pytest.raises(WrongBytes, match=r"^test_fails, test_differs$")
    torch = pytest.importorskip("torch", reason="needs torch: scripts/install.py engine")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(stock_client, "_TESTS", "test_stock.py")
    monkeypatch.chdir(tmp_path)
    Path("test_stock.py").write_text(STOCK.format(same=same))
    with Path("found").open("w") as found, nullcontext() if same else differing:
        stock_client.run(Report(found))
    if not same:
        return
    summary, failed = map(json.loads, Path("found").read_text().splitlines())
    assert (summary["verdict"], failed["what"], failed["verdict"]) == (
        "MISSED",
        "test_fails",
        "MISSED",
    )
    assert "1 failed, 2 passed" in summary["note"]


def test_it_is_killed_in_the_middle(tmp_path: Path) -> None:
    """What has been found is there, and nothing goes on."""
    ways = ["well", "hang", *["well"] * (len(STEPS) - 2)]
    environment = os.environ | {"QUICK_STEPS": " ".join(ways), "PYTHONPATH": str(REPO)}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        cwd=REPO, env=environment, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("*/step-1.jsonl")), "the second step has begun")
    (folder,) = tmp_path.iterdir()
    wait_until(lambda: (folder / "step-1.jsonl").read_text(), "and found something")
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    wait_until(lambda: not Path(f"/proc/{child}").exists(), "the step has ended, too")
    (line,) = lines_in(folder)
    assert line["verdict"] == "ok"


def test_wheels_that_fit_and_are_missing(tmp_path: Path) -> None:
    version = sys.version_info.minor
    machine = os.uname().machine
    fits = ("a", "py3-none-any"), ("b", f"cp3{version}-cp3{version}-manylinux_2_28_{machine}")
    others = [
        ("c", f"cp3{version + 1}-cp3{version + 1}-manylinux_2_28_{machine}"),
        ("d", f"cp3{version}-cp3{version}-manylinux_2_28_other"),
        ("e", "cp38-abi3-any"),
        ("numpy", "py3-none-any"),
    ]
    for name, tags in (*fits, *others):
        with zipfile.ZipFile(tmp_path / f"{name}-1.0-{tags}.whl", "w") as archive:
            archive.writestr(f"{name}.py", "")
    into = tmp_path / "unpacked"
    assert wheels.unpack(tmp_path, into) == ["a-1.0", "b-1.0", "e-1.0"]
    assert sorted(path.name for path in into.iterdir()) == ["a.py", "b.py", "e.py"]


def test_what_is_collected() -> None:
    """All that steps with a server look for, and all that a server needs but numpy."""
    needs = {gpu_wheels.name_of(need).lower() for need in gpu_wheels.server_needs()}
    assert "numpy" not in needs
    owners = importlib.metadata.packages_distributions()
    found = {owners[module][0].lower().replace("_", "-") for module in SERVER}
    assert found == needs | {"pyzmq"}
    names = gpu_wheels.platforms("manylinux_2_28_x86_64")
    assert names[0] == "manylinux_2_28_x86_64" and "manylinux2014_x86_64" in names
    assert gpu_wheels.platforms("macosx_11_0_arm64") == ["macosx_11_0_arm64"]
