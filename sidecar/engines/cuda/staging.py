"""A buffer on the GPU through which short runs go, so that the link sees a few long ones."""

import ctypes

import numpy as np

from sidecar.engines.cuda.driver import Driver
from sidecar.engines.cuda.plan import STEP_BYTES, STEP_RUNS, Ints

_WORD = 8
_TABLE_BYTES = 3 * STEP_RUNS * _WORD


class Staging:
    """`buffer` (STEP_BYTES of device memory), and the kernel that fills or empties it.

    One step at a time: the next may be begun when the last one has ended on the GPU.
    """

    def __init__(self, driver: Driver) -> None:
        """Raises DriverError."""
        self._driver = driver
        self.buffer = driver.allocate(STEP_BYTES)
        self._table = driver.allocate(_TABLE_BYTES)
        self._host_table = driver.allocate_host(_TABLE_BYTES)
        memory = (ctypes.c_int64 * (_TABLE_BYTES // _WORD)).from_address(self._host_table)
        self._words = np.ctypeslib.as_array(memory)

    def copy_runs(self, to: Ints, source: Ints, size: Ints, stream: int) -> None:
        """Begin to copy at most STEP_RUNS runs within device memory. Raises DriverError."""
        words = 3 * len(size)
        np.concatenate((to, source, size), out=self._words[:words])
        one = [np.array([n], np.uint64) for n in (self._table, self._host_table, words * _WORD)]
        self._driver.copy(one[0], one[1], one[2], stream, batched=False)
        self._driver.copy_runs(self._table, len(size), stream)
