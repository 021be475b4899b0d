"""scripts/install.py: what groups need of the system is brought, or named."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest

from sidecar import shared_libraries
from tests.support.server import REPO

PROGRAM = "kv-sidecar-test-program"
NAMED = f"  no {PROGRAM} (apt-get install {PROGRAM}): what needs it is skipped\n"


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the installer, which fills a directory of the test's own."""
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    monkeypatch.setattr(importlib.import_module("installer.steps"), "LOG", tmp_path / "log")
    install = importlib.import_module("install")
    monkeypatch.setattr(install, "VENV", tmp_path)
    monkeypatch.setattr(install, "make_venv", lambda: None)
    return importlib.import_module


@pytest.fixture
def apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In PATH and for root: makes a program of the package's name, if it may, and notes its use."""
    tool = tmp_path / "apt-get"
    made = f"{tmp_path}/{PROGRAM}"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\ncp "$0" {made}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return tool


def test_root_gets_what_is_missing(part: Any, apt_get: Path) -> None:
    system = part("installer.system")
    system.bring([PROGRAM, "sh", "libc.so.6"])
    assert system.missing([PROGRAM]) == []
    (call,) = apt_get.with_name("calls").read_text().splitlines()
    assert call.endswith(f"install -qq -y --no-install-recommends {PROGRAM}")


def test_others_are_told_what_is_missing(
    part: Any,
    apt_get: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    part("installer.system").bring([PROGRAM])
    assert capsys.readouterr().out == NAMED
    assert not apt_get.with_name("calls").exists()


def test_a_package_that_cannot_be_had_stops_nothing(
    part: Any, apt_get: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apt_get.write_text("#!/bin/sh\nexit 100\n")
    part("installer.system").bring([PROGRAM])
    assert capsys.readouterr().out.endswith(NAMED)


def test_a_group_is_installed_again_where_the_system_lacks_something_else(
    part: Any, apt_get: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after .venv has come to another machine."""
    install, steps = part("install"), []
    group = part("installer.groups").Group("it", lambda: steps.append("run"), (PROGRAM,))
    monkeypatch.setitem(install.GROUPS, "it", group)
    install.main(["it"])
    install.main(["it"])
    assert steps == ["run"]
    apt_get.with_name(PROGRAM).unlink()
    install.main(["it"])
    assert steps == ["run", "run"]
    assert apt_get.with_name(PROGRAM).exists()


@pytest.mark.parametrize("there", [True, False])
def test_mooncake_is_installed_only_where_it_can_be_loaded(
    there: bool, part: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, steps = part("installer.groups"), []
    monkeypatch.setattr(shared_libraries, "loads", lambda name: there)
    monkeypatch.setattr(groups, "pip", lambda *arguments: steps.append("pip"))
    monkeypatch.setattr(groups, "drop", lambda *arguments: steps.append("drop"))
    groups.install_mooncake()
    assert steps == ["pip" if there else "drop"]


def test_the_package_of_each_library_is_known(part: Any) -> None:
    groups = part("installer.groups").GROUPS.values()
    libraries = {name for group in groups for name in group.needs if ".so." in name}
    assert libraries == shared_libraries.DEBIAN.keys()
