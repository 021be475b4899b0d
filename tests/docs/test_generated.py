"""What `make generate` writes is what is there."""

import importlib
import re

import pytest

from tests.docs.pages import REPO


def test_generated_files_are_current(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPO / "scripts"))
    made = importlib.import_module("monitoring").files()
    for name in ("metrics_doc", "configuration_doc", "stock_flags_doc"):
        script = importlib.import_module(name)
        made[script.PAGE] = script.page()
    for path, text in made.items():
        assert path.read_text() == text, f"{path.name} is old: make generate"


def test_make_generate_runs_them() -> None:
    recipe = (REPO / "Makefile").read_text().partition("\ngenerate:\n")[2].partition("\n\n")[0]
    scripts = {"monitoring", "metrics_doc", "configuration_doc", "stock_flags_doc"}
    assert set(re.findall(r"scripts/(\w+)\.py", recipe)) == scripts
