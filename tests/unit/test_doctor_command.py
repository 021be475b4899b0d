"""`kv-sidecar doctor`: what it prints, and its exit codes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from sidecar.cli import main
from tests.support.doctor import doctor
from tests.support.server import free_port


def test_for_people_each_problem_has_its_reason_and_a_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["doctor", "--http-port", port, "--port", str(free_port())]) == 1
    out = capsys.readouterr().out
    begin = f"PROBLEM  http port: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert begin + "           why: the server refuses to start\n           do:  end" in out
    assert out.splitlines()[-1].startswith("problems: 1, warnings: ")


def test_the_configuration_comes_from_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "sidecar.yaml"
    file.write_text("l1-size-gb: 60000\n")
    code, findings = doctor("--config", str(file))
    assert code == 1
    assert findings["/dev/shm"]["what"].endswith("the L1 needs 58.59 TiB")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--l1-size-gb", "much"], "'much' is not a number"),
        (["--porrt", "1"], "--porrt"),
        (["--", "python", "train.py"], "'python train.py' after -- is no worker"),
        (["--", "vllm serve 'm"], "is no command: No closing quotation"),
        (["--", ""], "is no worker"),
        (["--config", "/nowhere.yaml"], "cannot read /nowhere.yaml"),
    ],
)
def test_wrong_usage(arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert reason in captured.err and captured.err.count("\n") == 1
