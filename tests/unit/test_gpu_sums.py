"""Objects summed up by the kernel have the digests of xxhash."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from sidecar.engines.cuda.driver import DriverError
from tests.support.fake_gpu import ILLEGAL, FakeDriver
from tests.support.server import wait_until
from tests.support.sums import SIZES, wrong


def test_the_fake_s_sums() -> None:
    assert wrong(FakeDriver(), SIZES) == []
    assert wrong(FakeDriver(), [1000 * 8]) == []


@pytest.mark.parametrize(
    ("begin", "size"), [(0, 4104), (-8, 256), (4, 256), (0, 252), (0, 240)],
    ids=["past the end", "before it", "odd address", "odd size", "short"],
)  # fmt: skip
def test_the_fake_refuses_what_the_kernel_cannot_read(begin: int, size: int) -> None:
    driver = FakeDriver()
    objects, table, stream = driver.allocate(4096), driver.allocate(80), driver.new_stream()
    held = driver.allocate_host(16)
    words = np.array([objects + begin, size], np.uint64)
    ctypes.memmove(held, words.ctypes.data, words.nbytes)
    driver.copy(*(np.array([n], np.uint64) for n in (table, held, 16)), stream, False)
    driver.sum_objects(table, 1, stream)

    def code() -> int | None:
        try:
            driver.read_word(table)
        except DriverError as error:
            return error.code
        return None

    wait_until(code, "the kernel has failed")
    assert code() == ILLEGAL
