"""`kv-sidecar completion`: what real shells offer; and help that fits a screen."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from sidecar.cli import main
from sidecar.config.options import GROUPS

# Tab, as bash does it: the function is called with COMP_WORDS and leaves COMPREPLY.
_TAB = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
function_name=$(complete -p kv-sidecar | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$function_name" kv-sidecar "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""
CASES = [
    (["st"], "status"),
    (["serve", "--l1-si"], "--l1-size-gb"),
    (["doctor", "--l2-ad"], "--l2-adapter"),
    (["size", "--kv-cache-dtype", "bf"], "bfloat16"),
    (["connector", "--role", "pre"], "prefill"),
    (["completion", "z"], "zsh"),
    (["lmcache-config", "prod"], "producer"),
]


@pytest.fixture
def script(
    tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> Path:
    shell = request.param
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    file = tmp_path / f"kv-sidecar.{shell}"
    file.write_text(capsys.readouterr().out)
    return file


def run(*command: str, directory: Path | None = None) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=directory)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


@pytest.mark.parametrize("script", ["bash"], indirect=True)
def test_bash_completes(script: Path, tmp_path: Path) -> None:
    for words, wanted in CASES:
        offered = run("bash", "-c", _TAB, "bash", str(script), "kv-sidecar", *words)
        assert wanted in offered, (words, offered)
    (tmp_path / "config.json").touch()
    words = ["kv-sidecar", "size", "conf"]
    assert "config.json" in run("bash", "-c", _TAB, "bash", script.name, *words, directory=tmp_path)


@pytest.mark.parametrize("script", ["fish"], indirect=True)
def test_fish_completes(script: Path) -> None:
    for words, wanted in CASES:
        line = " ".join(["kv-sidecar", *words])
        offered = run("fish", "-c", f"source {script}; complete -C '{line}'")
        assert wanted in [text.split("\t")[0] for text in offered], (words, offered)


@pytest.mark.parametrize("script", ["zsh"], indirect=True)
def test_zsh_reads_it(script: Path) -> None:
    run("zsh", "-n", str(script))
    assert "--l1-size-gb" in script.read_text()


def test_another_shell_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "sh"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# Those with more options than lines have them in groups.
_LONG = {"serve", "doctor", "worker-args"}
_SHORT = {"status", "wait", "size", "replay", "completion", "connector", "lmcache-config"}
_KINDS = ("in-process", "shared", "producer", "consumer")


@pytest.mark.parametrize(
    "words",
    [[], *([name] for name in sorted(_SHORT)), *(["lmcache-config", kind] for kind in _KINDS)],
    ids=" ".join,
)
def test_help_fits_a_screen(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = help_of(words, capsys, monkeypatch)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80


def test_help_lists_every_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = help_of([], capsys, monkeypatch)
    listed = {line.split()[0] for line in lines if line[:4] == " " * 4 and line[4:5].strip()}
    assert listed == _SHORT | _LONG


@pytest.mark.parametrize("command", sorted(_LONG))
def test_long_help_is_not_wide(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert max(map(len, help_of([command], capsys, monkeypatch))) <= 80


def help_of(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """On a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as stopped:
        main([*words, "--help"])
    assert stopped.value.code == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("command", ["serve", "doctor"])
def test_options_are_in_groups(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    for title in GROUPS.values():
        assert f"\n{title}:\n" in text
