"""Compiles the stand-ins for NVIDIA's libraries."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.server import REPO

SUPPORT = REPO / "tests" / "support"
_KERNELS = REPO / "sidecar" / "engines" / "cuda"
_FLAGS = ("-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Werror")


def build_libcuda(folder: Path, *sources: Path) -> None:
    """Make folder/libcuda.so.1, by default of the stub alone. Skips where that is impossible."""
    include = _headers()
    if include is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and cuda.h (of Triton or a CUDA toolkit)")
    sources = sources or (SUPPORT / "libcuda_stub.cpp",)
    compile(folder / "libcuda.so.1", *sources, f"-I{include}", f"-I{_KERNELS}")


def compile(library: Path, *arguments: str | Path) -> None:
    subprocess.run(["g++", *_FLAGS, "-o", library, *arguments], check=True)


def _headers() -> Path | None:
    """The folder of cuda.h: Triton brings it, as a toolkit does."""
    triton = importlib.util.find_spec("triton")
    places = [Path("/usr/local/cuda/include")]
    if triton is not None and triton.origin is not None:
        places.insert(0, Path(triton.origin).parent / "backends" / "nvidia" / "include")
    return next((place for place in places if (place / "cudaTypedefs.h").exists()), None)
