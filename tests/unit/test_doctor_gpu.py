"""`kv-sidecar doctor`: GPUs that are there and cannot be used, with drivers made here."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.server import REPO

_DRIVER = """
int cuInit(unsigned flags) { return %d; }
int cuDeviceGetCount(int *count) { *count = %d; return 0; }
"""


def look(devices: Path, libraries: Path, **environ: str) -> str:
    """What is said with these nodes in /dev and these libraries: level and text."""
    code = textwrap.dedent(f"""
        import os, pathlib
        from sidecar.commands.doctor.gpu import visible
        found = visible(os.environ, pathlib.Path({str(devices)!r}))
        print(found.level, found.what)
    """)
    clean = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean | {"LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(REPO)} | environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()


def driver(folder: Path, status: int, count: int) -> Path:
    """A libcuda.so.1 that answers so, in a folder of its own."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folder.mkdir()
    (folder / "cuda.c").write_text(_DRIVER % (status, count))
    command = [compiler, "-shared", "-o", str(folder / "libcuda.so.1"), str(folder / "cuda.c")]
    subprocess.run(command, check=True, timeout=60)
    return folder


def test_gpus(tmp_path: Path) -> None:
    nodes, none = tmp_path / "dev", tmp_path / "none"
    nodes.mkdir()
    none.mkdir()
    (nodes / "nvidia0").touch()
    good = driver(tmp_path / "good", 0, 2)
    assert look(nodes, good) == "ok 2 visible"
    hidden = look(nodes, driver(tmp_path / "hidden", 100, 0), CUDA_VISIBLE_DEVICES="")
    assert hidden == "problem 1 in /dev, none visible: CUDA_VISIBLE_DEVICES=''"
    broken = look(nodes, driver(tmp_path / "broken", 803, 0))
    assert broken == "problem 1 in /dev, but the driver answers with error 803"
    assert look(none, tmp_path / "hidden").startswith("ok none")


def test_a_gpu_without_its_library(tmp_path: Path) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
        pytest.skip("the driver's library is here")
    except OSError:
        pass
    assert look(tmp_path, tmp_path) == "ok none"
    (tmp_path / "nvidia0").touch()
    assert look(tmp_path, tmp_path).startswith("problem /dev/nvidia0 is there, libcuda.so.1 is not")
