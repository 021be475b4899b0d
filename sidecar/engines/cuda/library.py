"""libcuda.so.1, which comes with the NVIDIA driver: loaded, started, and called.

By ctypes: a ctypes call drops the GIL, needs no package and no toolkit, and the driver API
leaves no pending error behind. Signatures and constants are those of cuda.h.
"""

import ctypes
from ctypes import byref, c_int, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

from sidecar.engines.cuda.cuda_h import BatchCall
from sidecar.engines.cuda.driver import (
    FINAL_AT_START,
    INVALID_VALUE,
    Batches,
    Device,
    DriverError,
    DriverMissing,
)

_BATCH_VERSION = 12080  # of cuMemcpyBatchAsync
# Batches have been seen to crash and to hang with the drivers R580, which are those of CUDA 13.0
# (vLLM#49276), and LMDeploy does without on GPUs from this compute capability on.
_BAD_BATCHES, _BAD_BATCHES_FROM = 13000, 10
_MULTIPROCESSORS, _COMPUTE_CAPABILITY, _USES_MPS = 16, 75, 133  # CUdevice_attribute
# Where GKE's device plugin and WSL put the driver, which no loader knows by itself. A path of ours
# would not do: the driver looks for its compiler as the loader does.
OTHER_PLACES = ("/usr/local/nvidia/lib64", "/usr/lib/wsl/lib")


class Library:
    """The driver, started, and the first GPU that the environment shows (`device`)."""

    def __init__(self) -> None:
        """Raises DriverMissing if there is no GPU for us, and DriverError."""
        try:
            self.functions = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DriverMissing(f"no NVIDIA driver here: {error}{_where_it_is()}") from None
        count = c_int()
        try:
            self.call("cuInit", c_uint(0))
            self.call("cuDeviceGetCount", byref(count))
        except DriverError as error:
            raise DriverMissing(
                f"the NVIDIA driver does not start: {error}", error.code in FINAL_AT_START
            ) from None
        if not count.value:
            raise DriverMissing("the NVIDIA driver shows no such GPU to this process")
        self.device = c_int()
        self.call("cuDeviceGet", byref(self.device), c_int(0))

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function that gives a CUresult. Raises DriverError."""
        code = getattr(self.functions, name)(*arguments)
        if code:
            raise self.error(name, code)

    def error(self, call: str, code: int) -> DriverError:
        text = ctypes.c_char_p()
        known = self.functions.cuGetErrorName(c_int(code), byref(text)) != INVALID_VALUE
        name = text.value.decode() if known and text.value else ""
        return DriverError(call, code, name)

    def version(self) -> int:
        """The CUDA version that the driver supports, as 12080 for 12.8. Raises DriverError."""
        version = c_int()
        self.call("cuDriverGetVersion", byref(version))
        return version.value

    def attribute(self, which: int) -> int:
        """A CUdevice_attribute; 0 for one that the driver is too old for. Raises DriverError."""
        value = c_int()
        code = self.functions.cuDeviceGetAttribute(byref(value), c_int(which), self.device)
        if code not in (0, INVALID_VALUE):
            raise self.error("cuDeviceGetAttribute", code)
        return value.value

    def about(self, has_batches: bool) -> Device:
        """Raises DriverError."""
        name, bus, uuid = (ctypes.create_string_buffer(256) for _ in range(3))
        self.call("cuDeviceGetName", name, c_int(256), self.device)
        self.call("cuDeviceGetPCIBusId", bus, c_int(256), self.device)
        self.call("cuDeviceGetUuid_v2", uuid, self.device)
        return Device(
            name.value.decode(errors="replace"), uuid.raw[:16].hex(), bus.value.decode().lower(),
            self.attribute(_MULTIPROCESSORS), self.version(), has_batches,
            bool(self.attribute(_USES_MPS)),
        )  # fmt: skip

    def batch_call(self, batches: Batches) -> Any:
        """cuMemcpyBatchAsync as of CUDA 12.8; None if it is not there or not to be used.

        Raises DriverError.
        """
        if batches == "false" or self.version() < _BATCH_VERSION:
            return None
        if batches == "auto" and self._batches_are_bad():
            return None
        found, status = c_void_p(), c_int()
        self.call(
            "cuGetProcAddress_v2",
            b"cuMemcpyBatchAsync", byref(found), c_int(_BATCH_VERSION), c_uint64(0), byref(status),
        )  # fmt: skip
        return BatchCall(found.value) if found.value else None

    def _batches_are_bad(self) -> bool:
        is_new = self.attribute(_COMPUTE_CAPABILITY) >= _BAD_BATCHES_FROM
        return is_new or self.version() == _BAD_BATCHES


def _where_it_is() -> str:
    """What helps if the loader does not look where the driver is."""
    found = [place for place in OTHER_PLACES if Path(place, "libcuda.so.1").exists()]
    return f"; it is in {found[0]}: add that to LD_LIBRARY_PATH" if found else ""
