"""Which GPUs this process sees, asked of the driver itself."""

import ctypes
from collections.abc import Mapping
from pathlib import Path

from sidecar.commands.doctor.finding import Finding, ok, problem

_LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


def visible(environ: Mapping[str, str], devices: Path = Path("/dev")) -> Finding:
    """Nodes in /dev, the driver's library, and what that counts; it makes no context."""
    nodes = sorted(path.name for path in devices.glob("nvidia[0-9]*"))
    try:
        driver = ctypes.CDLL(_LIBRARY)
    except OSError:
        return _no_library(nodes)
    status, count = _count(driver)
    if status == 0 and count:
        return ok("GPU", f"{count} visible")
    if status in (0, _NO_DEVICE) and not nodes:
        return ok("GPU", "none, only the driver's library")
    return _unseen(nodes, status, environ)


def _no_library(nodes: list[str]) -> Finding:
    if not nodes:
        return ok("GPU", "none")
    return problem(
        "GPU",
        f"/dev/{nodes[0]} is there, {_LIBRARY} is not",
        "no program in this container can use the GPU",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility, and the NVIDIA container runtime",
    )


def _unseen(nodes: list[str], status: int, environ: Mapping[str, str]) -> Finding:
    hidden = environ.get("CUDA_VISIBLE_DEVICES")
    if status in (0, _NO_DEVICE) and hidden is not None:
        return problem(
            "GPU",
            f"{len(nodes)} in /dev, none visible: CUDA_VISIBLE_DEVICES={hidden!r}",
            "the variable hides them, from the server and from workers started here",
            "unset CUDA_VISIBLE_DEVICES, or name a GPU that there is",
        )
    return problem(
        "GPU",
        f"{len(nodes)} in /dev, but the driver answers with error {status}",
        "the driver's library and the kernel module do not work together",
        "compare nvidia-smi here and on the host; the library must be that of the host's driver",
    )


def _count(driver: ctypes.CDLL) -> tuple[int, int]:
    """CUDA's status, and the number of devices."""
    count = ctypes.c_int(0)
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return status, count.value
