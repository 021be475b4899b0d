"""Where in a machine the GPUs are: the arena is placed on their NUMA nodes.

The nodes are read from sysfs, so the server needs no CUDA for it.
"""

import ctypes
import logging
import os
import platform
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

log = logging.getLogger(__name__)

PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY_CLASS = "0x10de", "0x03"
_MBIND = {"x86_64": 237, "aarch64": 235}  # system call numbers
_INTERLEAVE = 3
_MASK_BITS = 64
_libc = ctypes.CDLL(None, use_errno=True)


def gpu_nodes(devices: Path = PCI_DEVICES) -> set[int]:
    """The NUMA nodes of the NVIDIA GPUs here; none where the machine does not say."""
    nodes = set()
    for device in devices.glob("*"):
        with suppress(OSError, ValueError):
            is_display = (device / "class").read_text().startswith(_DISPLAY_CLASS)
            if is_display and (device / "vendor").read_text().strip() == _NVIDIA:
                nodes.add(int((device / "numa_node").read_text()))
    return {node for node in nodes if 0 <= node < _MASK_BITS}


def place_on(nodes: set[int], memory: npt.NDArray[np.uint8]) -> None:
    """Let pages of `memory` that are touched from now on lie on these nodes in turn.

    Containers often forbid it; the kernel's choice holds then, and the log says so.
    """
    number = _MBIND.get(platform.machine())
    if number is None:
        return
    mask = ctypes.c_ulong(sum(1 << node for node in nodes))
    arguments = [
        ctypes.c_long(number), ctypes.c_void_p(memory.ctypes.data), ctypes.c_ulong(memory.nbytes),
        ctypes.c_int(_INTERLEAVE), ctypes.byref(mask), ctypes.c_ulong(_MASK_BITS + 1),
        ctypes.c_uint(0),
    ]  # fmt: skip
    where = ", ".join(map(str, sorted(nodes)))
    if _libc.syscall(*arguments):
        why = os.strerror(ctypes.get_errno())
        log.warning("the L1 is not placed on the GPUs' NUMA nodes (%s): mbind: %s", where, why)
    else:
        log.info("the L1 lies on the GPUs' NUMA nodes: %s", where)
