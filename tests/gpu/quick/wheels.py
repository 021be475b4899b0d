"""Wheels that were taken along, for what is not installed: they are unpacked, not installed."""

from __future__ import annotations

import importlib.metadata
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from platform import machine


def unpack(folder: Path, into: Path) -> list[str]:
    """Unpack the wheels that this Python can use and has not got. Their names and versions."""
    used = []
    for wheel in _wanted(folder):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(into)
        used.append("-".join(wheel.name.split("-")[:2]))
    return used


def _wanted(folder: Path) -> Iterator[Path]:
    installed = {_plain(found.name) for found in importlib.metadata.distributions()}
    for wheel in sorted(folder.glob("*.whl")):
        name, *_, pythons, abi, platform = wheel.stem.split("-")
        if _plain(name) not in installed and _fits(pythons, abi, platform):
            yield wheel


def _fits(pythons: str, abi: str, platform: str) -> bool:
    minor = sys.version_info.minor
    versions = [re.fullmatch(r"(?:py|cp)3(\d*)", tag) for tag in pythons.split(".")]
    numbers = [int(version[1] or 0) for version in versions if version]
    good = minor in numbers or 0 in numbers or (abi == "abi3" and min(numbers) <= minor)
    return good and (platform == "any" or machine() in platform)


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
