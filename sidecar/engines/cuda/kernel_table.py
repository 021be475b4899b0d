"""The words by which a kernel is told what to do: written here, read on the GPU."""

import ctypes

import numpy as np

from sidecar.engines.cuda.driver import Driver
from sidecar.engines.cuda.plan import STEP_RUNS, Ints

_WORD = 8
_WORDS = 3 * STEP_RUNS
_SUMS = 8
_OBJECT = 2  # words of an object before its sums


class KernelTable:
    """One kernel at a time: the next may be begun when the last one has ended on the GPU."""

    def __init__(self, driver: Driver) -> None:
        """Raises DriverError."""
        self._driver = driver
        self._table = driver.allocate(_WORDS * _WORD)
        self._host_table = driver.allocate_host(_WORDS * _WORD)
        memory = (ctypes.c_int64 * _WORDS).from_address(self._host_table)
        self._words = np.ctypeslib.as_array(memory)

    def free(self) -> None:
        """Nothing uses it any more. Raises DriverError."""
        self._driver.free(self._table)
        self._driver.free_host(self._host_table)

    def copy_runs(self, to: Ints, source: Ints, size: Ints, stream: int) -> None:
        """Begin to copy at most STEP_RUNS runs within device memory. Raises DriverError."""
        words = 3 * len(size)
        np.concatenate((to, source, size), out=self._words[:words])
        self._copy(self._table, self._host_table, words, stream)
        self._driver.copy_runs(self._table, len(size), stream)

    def sum_object(self, address: int, size: int, stream: int) -> None:
        """Begin to make the sums of an object. Raises DriverError."""
        self._words[:_OBJECT] = address, size
        self._copy(self._table, self._host_table, _OBJECT, stream)
        self._driver.sum_objects(self._table, 1, stream)
        begin = _OBJECT * _WORD
        self._copy(self._host_table + begin, self._table + begin, _SUMS, stream)

    def sums(self) -> list[int]:
        """The sums (uint64), when that has ended."""
        return [int(n) for n in self._words[_OBJECT : _OBJECT + _SUMS].view(np.uint64)]

    def _copy(self, to: int, source: int, words: int, stream: int) -> None:
        one = [np.array([n], np.uint64) for n in (to, source, words * _WORD)]
        self._driver.copy(one[0], one[1], one[2], stream, batched=False)
