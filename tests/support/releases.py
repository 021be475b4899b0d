"""Released packages of lmcache, each unpacked in a folder of its own (`scripts/install.py`)."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

FOLDER = Path(sys.prefix) / "clients"
RELEASES = ("0.4.5", "0.4.6", "0.4.7", "0.5.0", "0.5.1", "0.5.2", "0.5.3", "0.5.4", "0.5.5")


def folder(release: str) -> Path:
    """Where the release is, for PYTHONPATH; the test is skipped where it is not installed."""
    found = FOLDER / release
    if not (found / "lmcache").is_dir():
        pytest.skip(f"lmcache {release} is not installed: scripts/install.py clients")
    return found


def request_types(release: str) -> dict[str, int]:
    """The operations' ids, read from the source of the enumeration."""
    source = folder(release) / "lmcache/v1/multiprocess/protocols/base.py"
    (members,) = (
        node.body
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.ClassDef) and node.name == "RequestType"
    )
    names = [
        ast.unparse(member.targets[0])
        for member in members
        if isinstance(member, ast.Assign) and ast.unparse(member.value) == "enum.auto()"
    ]
    return {name.lower(): number for number, name in enumerate(names, 1)}


def protocol(release: str) -> dict[str, tuple[list[str], str]]:
    """By operation the payloads' and the reply's types, as the source spells them."""
    found = {}
    for file in (folder(release) / "lmcache/v1/multiprocess/protocols").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Dict):
                found.update(_definitions(node))
    return found


def _definitions(node: ast.Dict) -> dict[str, tuple[list[str], str]]:
    found = {}
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "ProtocolDefinition":
            given = {each.arg: each.value for each in value.keywords}
            payloads = given["payload_classes"]
            assert isinstance(payloads, ast.List) and isinstance(key, ast.Constant)
            types = [ast.unparse(each) for each in payloads.elts]
            found[str(key.value).lower()] = (types, ast.unparse(given["response_class"]))
    return found
