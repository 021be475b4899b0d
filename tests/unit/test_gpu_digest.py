"""The checksum that a GPU makes is xxh3_128: the specification, the kernel itself, its end."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
import xxhash

from sidecar.engines.cuda.digest import digest
from tests.support.server import REPO
from tests.support.xxh3 import sums

SIZES = (248, 256, 1016, 1024, 1032, 1088, 2040, 2048, 2056, 4088, 4096, 4104, 65536, 100_008)


def data_of(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_the_end_of_the_sums_is_the_digest(size: int) -> None:
    data = data_of(size)
    assert digest(sums(data), size) == xxhash.xxh3_128_digest(data)


def test_the_kernel_makes_the_sums_of_many_objects(tmp_path: Path) -> None:
    """Its source, thread by thread on the CPU, as it would be started on a GPU."""
    folder = REPO / "sidecar" / "engines" / "cuda"
    source = tmp_path / "kernel.cpp"
    source.write_text(f"""
        struct Dim {{ unsigned x; }};
        static Dim threadIdx, blockIdx, blockDim = {{32}};
        #define __device__
        #define __global__
        #define __launch_bounds__(threads)
        #include "{folder}/sum_objects.cu"
        extern "C" void run(u64 *table, unsigned objects) {{
            for (blockIdx.x = 0; blockIdx.x < (objects + 3) / 4; blockIdx.x++)
                for (threadIdx.x = 0; threadIdx.x < 32; threadIdx.x++) sum_objects(table, objects);
        }}
    """)
    library = tmp_path / "kernel.so"
    flags = ["-O1", "-shared", "-fPIC", "-Wall", "-Wno-unknown-pragmas", "-Werror"]
    subprocess.run(["g++", *flags, "-o", str(library), str(source)], check=True)
    objects = [np.frombuffer(data_of(size), np.uint64) for size in SIZES]
    table = np.zeros(10 * len(objects), np.uint64)
    table[: len(objects)] = [memory.ctypes.data for memory in objects]
    table[len(objects) : 2 * len(objects)] = SIZES
    ctypes.CDLL(str(library)).run(ctypes.c_void_p(table.ctypes.data), len(objects))
    made = table[2 * len(objects) :].reshape(-1, 8).tolist()
    assert made == [sums(data_of(size)) for size in SIZES]
