"""What the rest relies on of the driver itself, in a process of its own for each check."""

from __future__ import annotations

import os
import subprocess
import sys
from textwrap import dedent

import pytest

from tests.gpu.smi import gpus
from tests.support.server import REPO

pytestmark = pytest.mark.gpu

HEAD = """
    import ctypes, mmap, time
    import numpy as np
    from sidecar.engines.cuda.driver import DriverError
    from sidecar.engines.cuda.libcuda import LibCuda
    MIB = 1 << 20
    driver = LibCuda()
    about = driver.open("true")
    memory = mmap.mmap(-1, 64 * MIB)
    view = np.frombuffer(memory, np.uint8)
    view[:] = 7
    host = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    device, stream, event = driver.allocate(64 * MIB), driver.new_stream(), driver.new_event()

    def words(*values):
        return np.array(values, np.uint64)

    def wait():
        driver.record(event, stream)
        while not driver.is_done(event):
            time.sleep(1e-4)
"""


def run(code: str, **environment: str) -> str:
    """What `code` prints, run after HEAD."""
    program = dedent(HEAD) + dedent(code)
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPO,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_versions_and_the_uuid() -> None:
    name, uuid, version, batches = run(
        "print(about.name, about.uuid, about.driver, about.has_batches, sep='|')"
    ).split("|")
    torch = pytest.importorskip("torch")
    properties = torch.cuda.get_device_properties(0)
    assert name == properties.name
    assert uuid == str(properties.uuid).replace("-", "").removeprefix("GPU")
    assert batches == "True", f"a driver for CUDA {version} has no batched copies: slow, not wrong"


def test_every_gpu_is_found_by_its_uuid() -> None:
    """Whatever their order: a child sees one GPU, the first that its environment names."""
    for uuids in (gpus(), gpus()[::-1]):
        found = run("print(about.uuid)", CUDA_VISIBLE_DEVICES=",".join(uuids))
        assert found == uuids[0].replace("-", "").removeprefix("GPU")


def test_pinned_memory_has_the_address_that_the_device_promises() -> None:
    out = run("""
        CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM = 91
        same = driver.cuda.attribute(CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM)
        print(same, int(driver.pin(host, 64 * MIB) == host))
    """)
    promised, found = map(int, out.split())
    assert found >= promised, "copies must use the address that the driver gives"


def test_pieces_are_apart() -> None:
    """A copy over two pieces fails with error 1; where it passes, we cut all the same."""
    out = run("""
        half = 32 * MIB
        first = driver.pin(host, half)
        driver.pin(host + half, half)
        try:
            driver.copy(words(device), words(first + half - MIB), words(2 * MIB), stream, False)
            wait()
            print("passes")
        except DriverError as error:
            print(error.code)
    """)
    assert out in ("1", "passes")


def test_memory_that_is_not_pinned_is_copied_all_the_same() -> None:
    """What a server does whose memory the system does not let it pin."""
    out = run("""
        view[:] = np.arange(len(view)) % 251
        driver.copy(words(device), words(host), words(len(view)), stream, False)
        wait()
        view[:] = 0
        driver.copy(words(host), words(device), words(len(view)), stream, False)
        wait()
        print(np.array_equal(view, (np.arange(len(view)) % 251).astype(np.uint8)))
    """)
    assert out == "True"


def test_what_is_no_handle_is_an_error_that_kills_nothing() -> None:
    """Handles come from whoever reaches the port. A fatal code here would cost all workers."""
    out = run("""
        random = np.random.default_rng(0)
        handles = [bytes(64), b"\\xff" * 64, *(random.bytes(64) for _ in range(100))]
        for handle in handles:
            for opens in (driver.map_memory, driver.open_event):
                try:
                    opens(handle)
                    print("opened", handle.hex())
                except DriverError as error:
                    if error.is_fatal:
                        print(error)
        driver.pin(host, 64 * MIB)
        driver.copy(words(device), words(host), words(MIB), stream, False)
        wait()
    """)
    assert out == ""


def test_a_bad_pointer_in_a_batch_is_an_error_that_kills_nothing() -> None:
    out = run("""
        driver.pin(host, 64 * MIB)
        try:
            driver.copy(words(device, 8), words(host, host), words(4096, 4096), stream, True)
        except DriverError as error:
            print(error.is_fatal, error)
        driver.copy(words(device, device + MIB), words(host, host), words(MIB, MIB), stream, True)
        wait()
    """)
    is_fatal, text = out.split(maxsplit=1)
    assert is_fatal == "False"
    index = int(text.partition("entry ")[2].partition(":")[0])
    assert index in (1, 2**64 - 1), "the bad entry, or none in particular"


def test_batches_are_refused_on_the_legacy_stream() -> None:
    """So the streams must be our own."""
    out = run("""
        driver.pin(host, 64 * MIB)
        try:
            driver.copy(words(device, device + MIB), words(host, host), words(MIB, MIB), 0, True)
        except DriverError as error:
            print(error.code)
    """)
    assert out == "1"


def test_batches_again_and_again() -> None:
    """4096 copies a call, ten thousand times, without one that hangs."""
    out = run("""
        driver.pin(host, 64 * MIB)
        at = np.arange(4096, dtype=np.uint64) * 4096
        sizes = np.full(4096, 4096, np.uint64)
        view[:] = np.arange(len(view)) % 251
        for turn in range(10_000):
            driver.copy(at + np.uint64(device), at + np.uint64(host), sizes, stream, True)
            if turn % 16 == 15:
                wait()
        view[:] = 0
        driver.copy(words(host), words(device), words(4096 * 4096), stream, False)
        wait()
        print(np.array_equal(view[: 4096 * 4096], (np.arange(4096 * 4096) % 251).astype(np.uint8)))
    """)
    assert out == "True"


@pytest.mark.parametrize("size", [1, 3, 4, 12, 16, 48, 1024, 4096, 18432, 40_001])
def test_the_kernel_copies_runs_of_any_size(size: int) -> None:
    out = run(f"""
        size, count = {size}, 300
        driver.pin(host, 64 * MIB)
        view[:] = np.random.default_rng(1).integers(0, 256, len(view), np.uint8)
        before = view.copy()
        driver.copy(words(device), words(host), words(len(view)), stream, False)
        order = np.random.default_rng(0).permutation(count)
        to = device + 32 * MIB + np.arange(count) * size
        source = device + 1 + 2 * order * (size + 1)
        table = np.concatenate((to, source, np.full(count, size))).astype(np.uint64)
        held = driver.allocate_host(table.nbytes)
        ctypes.memmove(held, table.ctypes.data, table.nbytes)
        place = driver.allocate(table.nbytes)
        driver.copy(words(place), words(held), words(table.nbytes), stream, False)
        driver.copy_runs(place, count, stream)
        driver.copy(words(host), words(device), words(len(view)), stream, False)
        wait()
        expected = before.copy()
        for i, n in enumerate(order):
            begin = 1 + 2 * n * (size + 1)
            at = 32 * MIB + i * size
            expected[at : at + size] = before[begin : begin + size]
        print(np.array_equal(expected, view))
    """)
    assert out == "True"


def test_the_kernel_s_sums() -> None:
    out = run("""
        from tests.support.sums import SIZES, wrong
        print(wrong(driver, SIZES))
    """)
    assert out == "[]"
