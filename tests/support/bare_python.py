"""A Python with numpy and nothing else, and wheels of what is installed here."""

from __future__ import annotations

import importlib.metadata
import sys
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement


def bare_python(folder: Path) -> Path:
    """The interpreter of a new environment in `folder`, into which nothing is copied."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    for name in {file.parts[0] for file in _files("numpy") if file.parts[0] != ".."}:
        (packages / name).symlink_to(_site("numpy") / name)
    return folder / "bin" / "python"


def make_wheels(folder: Path, requirements: Iterable[str], without: set[str]) -> None:
    """Wheels of these distributions and of all that they need, for this Python alone."""
    folder.mkdir()
    tag = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for name in _with_needs(requirements, without):
        version = importlib.metadata.version(name)
        target = folder / f"{name.replace('-', '_')}-{version}-{tag}-{tag}-any.whl"
        with zipfile.ZipFile(target, "w") as archive:
            for file in _files(name):
                if file.parts[0] != ".." and file.suffix != ".pyc":
                    archive.write(str(file.locate()), str(file))


def _with_needs(requirements: Iterable[str], without: set[str]) -> list[str]:
    found: list[str] = []
    wanted = [Requirement(text) for text in requirements]
    while wanted:
        need = wanted.pop()
        if need.name in without or need.name in found:
            continue
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        found.append(need.name)
        wanted += [Requirement(text) for text in importlib.metadata.requires(need.name) or []]
    return found


def _files(name: str) -> list[importlib.metadata.PackagePath]:
    return importlib.metadata.files(name) or []


def _site(name: str) -> Path:
    return Path(str(importlib.metadata.distribution(name).locate_file("")))
