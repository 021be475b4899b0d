"""The pictures of docs/ are of what stands beside them."""

import ast
import html
import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

import pytest

from scripts.benchmark_picture import PICTURE, table
from tests.support.server import REPO

DEMO = REPO / "docs" / "images" / "demo.svg"


def test_the_picture_of_the_benchmark_is_of_its_table() -> None:
    shown = re.findall(r">([^<>]+)</text>", PICTURE.read_text())
    rows = [row for row in table() if row.figure.target.text()]
    assert len(rows) > 10
    for row in rows:
        assert row.figure.title in shown
        assert f"{row.peer:.3g}" in shown and f"{row.ours:.3g}" in shown, row.figure.title


def test_the_picture_of_the_demo_says_what_the_demo_says() -> None:
    """But for its figures: scripts/demo_picture.py makes it."""
    pytest.importorskip("tokenizers", reason="needs tokenizers: scripts/install.py engine")
    from examples.demo import __main__ as demo
    from examples.demo import report

    shown = words(" ".join(re.findall(r">([^<>]+)</text>", html.unescape(DEMO.read_text()))))
    said = [text for part in (demo.Demo, report.table, report.memory) for text in literals(part)]
    assert len(said) > 15
    for text in said:
        assert words(text) in shown


def literals(definition: Any) -> Iterator[str]:
    """Its texts but for docstrings and names; of an f-string the parts."""
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(definition)))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text))
