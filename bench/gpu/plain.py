"""What the link gives: pinned memory copied by cuMemcpyAsync, nothing else in the way."""

from __future__ import annotations

import mmap
import time
from pathlib import Path

import numpy as np

from bench.gpu.findings import Finding
from sidecar.engines.cuda.driver import Device, Driver
from sidecar.engines.cuda.numa import PCI_DEVICES, place_on

Rates = dict[str, float]
_STORE, _LOAD = 0, 1
_PHASES = {"store": (_STORE,), "load": (_LOAD,), "both": (_STORE, _LOAD)}
_NODES = Path("/sys/devices/system/node")
_NUMA_MAPS = Path("/proc/self/numa_maps")


class Link:
    """Room for `nbytes` in each direction, pinned and on the GPU, until the process ends.

    With a `node` the host's memory lies on that NUMA node, if the system allows it (`is_on`).
    """

    def __init__(self, driver: Driver, nbytes: int, node: int | None = None) -> None:
        self._driver = driver
        self._memory = mmap.mmap(-1, 2 * nbytes)
        view = np.frombuffer(self._memory, np.uint8)
        if node is not None:
            place_on({node}, view)
        view[:: mmap.PAGESIZE] = 1
        self._address = view.ctypes.data
        host = driver.pin(self._address, 2 * nbytes)
        self._host = [host, host + nbytes]
        self._device = [driver.allocate(nbytes) for _ in (_STORE, _LOAD)]
        self._streams = [driver.new_stream() for _ in (_STORE, _LOAD)]
        self._events = [driver.new_event() for _ in (_STORE, _LOAD)]

    def rates(self, nbytes: int, repeats: int) -> Rates:
        """GB/s of copies of `nbytes` bytes: store (from the GPU), load, and both at once in all."""
        for directions in _PHASES.values():
            self._seconds(directions, nbytes, 1)
        return {
            name: len(directions)
            * repeats
            * nbytes
            / 1e9
            / self._seconds(directions, nbytes, repeats)
            for name, directions in _PHASES.items()
        }

    def is_on(self, node: int) -> bool:
        """Whether pages of the host's memory lie on this NUMA node."""
        for mapping in _NUMA_MAPS.read_text().splitlines():
            if int(mapping.split()[0], 16) == self._address:
                return f" N{node}=" in mapping
        return False

    def _seconds(self, directions: tuple[int, ...], nbytes: int, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            for direction in directions:
                self._copy(direction, nbytes)
        for direction in directions:
            self._driver.record(self._events[direction], self._streams[direction])
        while not all(self._driver.is_done(self._events[direction]) for direction in directions):
            pass
        return time.perf_counter() - start

    def _copy(self, direction: int, nbytes: int) -> None:
        pair = self._host[direction], self._device[direction]
        to, source = pair if direction == _STORE else pair[::-1]
        words = [np.array([value], np.uint64) for value in (to, source, nbytes)]
        self._driver.copy(words[0], words[1], words[2], self._streams[direction], batched=False)


def measure(driver: Driver, device: Device, nbytes: int = 256 << 20) -> list[Finding]:
    """Plain copies near the GPU and, where the machine has two, from another NUMA node."""
    near, nodes = _gpu_node(device), _nodes()
    rates = Link(driver, nbytes, near).rates(nbytes, repeats=10)
    found = [Finding(f"link_{phase}", rate) for phase, rate in rates.items()]
    far = next((node for node in nodes if near is not None and node != near), None)
    if far is None:
        why = "one NUMA node" if len(nodes) < 2 else "the GPU's NUMA node is not known"
        return found + [Finding(f"far_{phase}", None, why) for phase in ("store", "load")]
    link = Link(driver, nbytes, far)
    if not link.is_on(far):
        return found + [Finding(f"far_{p}", None, "mbind is forbidden") for p in ("store", "load")]
    slower = link.rates(nbytes, repeats=10)
    notes = {phase: f"{100 * (slower[phase] / rates[phase] - 1):+.0f} %" for phase in rates}
    return found + [Finding(f"far_{p}", slower[p], notes[p]) for p in ("store", "load")]


def _gpu_node(device: Device) -> int | None:
    """None where the machine does not say."""
    try:
        node = int((PCI_DEVICES / device.bus_id / "numa_node").read_text())
    except OSError:
        return None
    return node if node >= 0 else None


def _nodes() -> list[int]:
    """The NUMA nodes that have memory."""
    return sorted(
        int(node.name.removeprefix("node"))
        for node in _NODES.glob("node[0-9]*")
        if "MemTotal:        0 kB" not in (node / "meminfo").read_text()
    )
