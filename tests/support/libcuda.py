"""The stub of libcuda, built for a test."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.server import REPO

_STUB = REPO / "tests" / "support" / "libcuda_stub.cpp"
_KERNEL = REPO / "sidecar" / "engines" / "cuda"


def stub_driver(folder: Path) -> dict[str, str]:
    """The environment in which the stub is the driver."""
    include = _headers()
    if include is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and cuda.h (of Triton or a CUDA toolkit)")
    output = ["-o", str(folder / "libcuda.so.1")]
    flags = ["-O1", "-shared", "-fPIC", "-Wall", "-Werror", f"-I{include}", f"-I{_KERNEL}"]
    subprocess.run(["g++", *flags, *output, str(_STUB)], check=True)
    return {"LD_LIBRARY_PATH": str(folder)}


def _headers() -> Path | None:
    """The folder of cuda.h: Triton brings it, as a toolkit does."""
    triton = importlib.util.find_spec("triton")
    places = [Path("/usr/local/cuda/include")]
    if triton is not None and triton.origin is not None:
        places.insert(0, Path(triton.origin).parent / "backends" / "nvidia" / "include")
    return next((place for place in places if (place / "cudaTypedefs.h").exists()), None)
