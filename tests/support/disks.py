"""Directories as backends: names, settings, and small disks of other kinds."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sidecar.tiers.adapters.fs import FilesSettings
from sidecar.tiers.names import ObjectName

MIB = 1 << 20
SPACE = "org=2Fmodel@2.1@" + "ab" * 16


def name(n: int) -> ObjectName:
    return ObjectName(SPACE, bytes([n]) * 32)


def settings(base: Path, **more: Any) -> FilesSettings:
    spec = {"type": "fs", "base_path": str(base), **more}
    return msgspec.convert(spec, FilesSettings, strict=False)


def files_below(base: Path) -> list[str]:
    """Also while others remove files and folders, which is too much for `Path.rglob`."""
    found = (Path(folder, name) for folder, _, names in os.walk(base) for name in names)
    return sorted(str(path.relative_to(base)) for path in found)


def records(base: Path) -> list[str]:
    """The names of an `fs` adapter's records."""
    return [each for each in files_below(base) if each.endswith(".kv")]


@contextmanager
def mounted(where: Path, kind: str, *options: str) -> Iterator[Path]:
    where.mkdir()
    done = subprocess.run(["mount", "-t", kind, *options, kind, str(where)], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a {kind} here: {done.stderr.decode().strip()}")
    try:
        yield where
    finally:
        subprocess.run(["umount", "--lazy", str(where)], check=True)
