"""With another vLLM the connector says so, whatever that vLLM has no more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import REPO


@pytest.mark.parametrize("module", ["spec", "connector"])
@pytest.mark.parametrize("version", ["0.30.0", "0.34.0"])
def test_a_vllm_that_is_not_served_is_refused_first(
    tmp_path: Path, module: str, version: str
) -> None:
    """Its modules are there, and nothing in them has the name it had."""
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text(f"__version__ = {version!r}\n")
    done = subprocess.run(
        [sys.executable, "-c", f"import connectors.native.{module}"],
        env={"PYTHONPATH": f"{tmp_path}:{REPO}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode
    last = done.stderr.strip().splitlines()[-1]
    assert "vLLM's own offloading connector needs vllm 0.31.0 up to" in last, done.stderr
    assert f"the worker has {version}" in last
