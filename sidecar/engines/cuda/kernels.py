"""The kernels, which the driver compiles for its GPU when a child starts."""

import ctypes
import logging
from ctypes import byref, c_uint, c_uint64, c_void_p
from pathlib import Path

from sidecar.engines.cuda.driver import NO_KERNEL, DriverError
from sidecar.engines.cuda.library import Library

log = logging.getLogger(__name__)

_COPY_THREADS = 1024
_WARPS = _COPY_THREADS // 32  # of a block; each copies one run at a time
_SUM_THREADS, _OBJECT_THREADS = 32, 8


class Kernels:
    """`copy_runs` and `sum_objects` of the driver interface. All methods raise DriverError."""

    def __init__(self, cuda: Library) -> None:
        self._cuda = cuda
        self._copy, self._sum = self._load("copy_runs"), self._load("sum_objects")

    def copy_runs(self, table: int, runs: int, most_blocks: int, stream: int) -> None:
        blocks = min(-(-runs // _WARPS), most_blocks)
        self._launch(self._copy, blocks, _COPY_THREADS, table, runs, stream)

    def sum_objects(self, table: int, objects: int, stream: int) -> None:
        blocks = -(-objects * _OBJECT_THREADS // _SUM_THREADS)
        self._launch(self._sum, blocks, _SUM_THREADS, table, objects, stream)

    def _load(self, name: str) -> c_void_p:
        """The kernel of the .ptx file that is called like it."""
        ptx = Path(__file__).with_name(f"{name}.ptx").read_bytes() + b"\0"
        module, function = c_void_p(), c_void_p()
        self._cuda.call("cuModuleLoadData", byref(module), ptx)
        self._cuda.call("cuModuleGetFunction", byref(function), module, name.encode())
        return function

    def _launch(
        self, kernel: c_void_p, blocks: int, threads: int, table: int, count: int, stream: int
    ) -> None:
        """Begin a kernel that takes a table in device memory and how many things are in it."""
        values = (c_uint64(table), c_uint(count))
        pointers = (c_void_p * 2)(*(ctypes.addressof(value) for value in values))
        self._cuda.call(
            "cuLaunchKernel", kernel,
            c_uint(blocks), c_uint(1), c_uint(1), c_uint(threads), c_uint(1), c_uint(1),
            c_uint(0), c_void_p(stream), pointers, None,
        )  # fmt: skip


def load_kernels(cuda: Library) -> Kernels | None:
    """None if this driver could not compile them, of which the log tells. Raises DriverError."""
    try:
        return Kernels(cuda)
    except DriverError as error:
        if error.is_sticky:
            raise
        why = NO_KERNEL.get(error.code, "report it, with the version of the driver")
        log.warning("no kernels, short runs are copied one by one, slowly: %s: %s", error, why)
        return None
