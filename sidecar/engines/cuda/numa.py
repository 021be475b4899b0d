"""Where in a machine the GPUs are: the arena is placed on their NUMA nodes, a part on each.

The nodes are read from sysfs, so the server needs no CUDA for it.
"""

import ctypes
import logging
import os
import platform
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sidecar.cache.arena import Arena, parts_of
from sidecar.engines.cuda.driver import Device

log = logging.getLogger(__name__)

PCI_DEVICES = Path("/sys/bus/pci/devices")
_NVIDIA, _DISPLAY_CLASS = "0x10de", "0x03"
_MBIND = {"x86_64": 237, "aarch64": 235}  # system call numbers
# Neither is strict: where a node is full its pages come from another one.
_PREFERRED, _INTERLEAVE = 1, 3
_MASK_BITS = 64
_libc = ctypes.CDLL(None, use_errno=True)


def gpu_nodes(devices: Path = PCI_DEVICES) -> list[int]:
    """The NUMA nodes of the NVIDIA GPUs here; none where the machine does not say."""
    nodes = set()
    for device in devices.glob("*"):
        with suppress(OSError, ValueError):
            is_display = (device / "class").read_text().startswith(_DISPLAY_CLASS)
            if is_display and (device / "vendor").read_text().strip() == _NVIDIA:
                nodes.add(int((device / "numa_node").read_text()))
    return sorted(node for node in nodes if 0 <= node < _MASK_BITS)


def near_part(device: Device, size: int, nodes: Sequence[int]) -> int | None:
    """Which part of an arena of `size` bytes lies on the GPU's node; None if it has no parts.

    `nodes`: what `gpu_nodes` was when it was placed.
    """
    with suppress(OSError, ValueError):
        node = int((PCI_DEVICES / device.bus_id / "numa_node").read_text())
        if len(parts_of(size, len(nodes))) > 1:
            return nodes.index(node)
    return None


def place(arena: Arena, nodes: Sequence[int]) -> None:
    """Let the arena's parts lie on a node each; if it has only one, its pages on all in turn."""
    if len(arena.parts) > 1:
        for node, part in zip(nodes, arena.parts, strict=True):
            name = f"the L1 from {part.start / 2**30:.2f} to {part.stop / 2**30:.2f} GiB"
            place_on([node], arena.bytes[part.start : part.stop], name)
    elif nodes:
        place_on(nodes, arena.bytes)


def place_on(nodes: Collection[int], memory: npt.NDArray[np.uint8], name: str = "the L1") -> None:
    """Let pages of `memory` that are touched from now on lie on these nodes, in turn if several.

    Containers often forbid it; the kernel's choice holds then, and the log says so. It calls
    the memory `name`.
    """
    number = _MBIND.get(platform.machine())
    if number is None:
        return
    policy = _PREFERRED if len(nodes) == 1 else _INTERLEAVE
    mask = ctypes.c_ulong(sum(1 << node for node in nodes))
    arguments = [
        ctypes.c_long(number), ctypes.c_void_p(memory.ctypes.data), ctypes.c_ulong(memory.nbytes),
        ctypes.c_int(policy), ctypes.byref(mask), ctypes.c_ulong(_MASK_BITS + 1),
        ctypes.c_uint(0),
    ]  # fmt: skip
    where = ", ".join(map(str, sorted(nodes)))
    if _libc.syscall(*arguments):
        why = os.strerror(ctypes.get_errno())
        log.warning("%s is not placed on the GPUs' NUMA nodes (%s): mbind: %s", name, where, why)
    else:
        log.info("%s lies on the GPUs' NUMA nodes: %s", name, where)
