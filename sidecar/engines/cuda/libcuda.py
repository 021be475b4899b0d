"""The driver interface over libcuda.so.1, which comes with the NVIDIA driver.

By ctypes: a ctypes call drops the GIL, needs no package and no toolkit, and the driver API
leaves no pending error behind. Signatures and constants are those of cuda.h.
"""

import ctypes
import logging
from ctypes import byref, c_int, c_size_t, c_uint, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from sidecar.engines.cuda.cuda_h import BatchAttributes, BatchCall, Handle
from sidecar.engines.cuda.driver import (
    FINAL_AT_START,
    INVALID_VALUE,
    NO_KERNEL,
    Addresses,
    Device,
    DriverError,
    DriverMissing,
)

log = logging.getLogger(__name__)

_BATCH_VERSION = 12080  # of cuMemcpyBatchAsync
# Descriptors of one batch call: drivers have been seen to crash at 50,000 (vLLM#49276).
_BATCH = 4096
_ORDER_STREAM, _PREFER_OVERLAP = 1, 1
_NOT_READY = 600
_STREAM_NON_BLOCKING, _EVENT_NO_TIMING, _LAZY_PEER_ACCESS, _PIN_MAPPED = 1, 2, 1, 2
_MULTIPROCESSORS = 16
# A kernel may keep this share of the GPU's multiprocessors busy: inference has the rest.
_KERNEL_SHARE, _KERNEL_THREADS = 20, 1024
_WARPS = _KERNEL_THREADS // 32  # of a block; each copies one run at a time
_SUM_THREADS, _OBJECT_THREADS = 32, 8


class LibCuda:
    """The first GPU that the environment shows (CUDA_VISIBLE_DEVICES)."""

    def open(self, use_batches: bool) -> Device:
        self._start()
        device, context = c_int(), c_void_p()
        self._call("cuDeviceGet", byref(device), c_int(0))
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxSetCurrent", context)
        self._batch = self._batch_call() if use_batches else None
        about = self._about(device)
        self.has_kernels = self._load_kernels()
        self._kernel_blocks = max(1, about.multiprocessors // _KERNEL_SHARE)
        self._control = self.new_stream()
        self._word = self.allocate_host(8)
        return about

    def map_memory(self, handle: bytes) -> tuple[int, int]:
        address = c_uint64()
        self._call(
            "cuIpcOpenMemHandle_v2",
            byref(address),
            Handle.from_buffer_copy(handle),
            c_uint(_LAZY_PEER_ACCESS),
        )
        base, size = c_uint64(), c_size_t()
        self._call("cuMemGetAddressRange_v2", byref(base), byref(size), address)
        # Where the driver cut the allocation from a larger block, the range may be the block's.
        return address.value, base.value + size.value - address.value

    def unmap_memory(self, address: int) -> None:
        self._call("cuIpcCloseMemHandle", c_uint64(address))

    def open_event(self, handle: bytes) -> int:
        event = c_void_p()
        self._call("cuIpcOpenEventHandle", byref(event), Handle.from_buffer_copy(handle))
        return event.value or 0

    def new_event(self) -> int:
        event = c_void_p()
        self._call("cuEventCreate", byref(event), c_uint(_EVENT_NO_TIMING))
        return event.value or 0

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy_v2", c_void_p(event))

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", c_void_p(event), c_void_p(stream))

    def is_done(self, event: int) -> bool:
        code = self._lib.cuEventQuery(c_void_p(event))
        if code not in (0, _NOT_READY):
            raise self._error("cuEventQuery", code)
        return bool(code == 0)

    def new_stream(self) -> int:
        """One that the legacy stream never waits for, of the lowest priority (the default)."""
        stream = c_void_p()
        self._call("cuStreamCreate", byref(stream), c_uint(_STREAM_NON_BLOCKING))
        return stream.value or 0

    def allocate(self, nbytes: int) -> int:
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(nbytes))
        return address.value

    def free(self, address: int) -> None:
        self._call("cuMemFree_v2", c_uint64(address))

    def allocate_host(self, nbytes: int) -> int:
        address = c_void_p()
        self._call("cuMemHostAlloc", byref(address), c_size_t(nbytes), c_uint(0))
        return address.value or 0

    def free_host(self, address: int) -> None:
        self._call("cuMemFreeHost", c_void_p(address))

    def pin(self, address: int, nbytes: int) -> int:
        host = c_void_p(address)
        self._call("cuMemHostRegister_v2", host, c_size_t(nbytes), c_uint(_PIN_MAPPED))
        device = c_uint64()
        self._call("cuMemHostGetDevicePointer_v2", byref(device), host, c_uint(0))
        return device.value

    def copy(
        self, to: Addresses, source: Addresses, sizes: Addresses, stream: int, batched: bool
    ) -> None:
        if batched and self._batch is not None and len(sizes) > 1:
            for at in range(0, len(sizes), _BATCH):
                part = slice(at, at + _BATCH)
                self._copy_batch(to[part], source[part], sizes[part], stream)
            return
        for arguments in zip(to.tolist(), source.tolist(), sizes.tolist(), strict=True):
            target, origin, nbytes = arguments
            self._call(
                "cuMemcpyAsync",
                c_uint64(target), c_uint64(origin), c_size_t(nbytes), c_void_p(stream),
            )  # fmt: skip

    def copy_runs(self, table: int, runs: int, stream: int) -> None:
        blocks = min(-(-runs // _WARPS), self._kernel_blocks)
        self._launch(self._copy_kernel, blocks, _KERNEL_THREADS, table, runs, stream)

    def sum_objects(self, table: int, objects: int, stream: int) -> None:
        blocks = -(-objects * _OBJECT_THREADS // _SUM_THREADS)
        self._launch(self._sum_kernel, blocks, _SUM_THREADS, table, objects, stream)

    def read_word(self, address: int) -> int:
        self._call(
            "cuMemcpyAsync",
            c_uint64(self._word), c_uint64(address), c_size_t(8), c_void_p(self._control),
        )  # fmt: skip
        self._call("cuStreamSynchronize", c_void_p(self._control))
        return c_uint64.from_address(self._word).value

    def _start(self) -> None:
        """Load and start the driver. Raises DriverMissing if there is no GPU for us."""
        try:
            self._lib = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise DriverMissing(f"no NVIDIA driver here: {error}") from None
        count = c_int()
        try:
            self._call("cuInit", c_uint(0))
            self._call("cuDeviceGetCount", byref(count))
        except DriverError as error:
            raise DriverMissing(
                f"the NVIDIA driver does not start: {error}", error.code in FINAL_AT_START
            ) from None
        if not count.value:
            raise DriverMissing("the NVIDIA driver shows no such GPU to this process")

    def _copy_batch(self, to: Addresses, source: Addresses, sizes: Addresses, stream: int) -> None:
        assert self._batch is not None
        attributes = BatchAttributes(order=_ORDER_STREAM, flags=_PREFER_OVERLAP)
        first, failed = c_size_t(0), c_size_t(0)
        arrays = [np.ascontiguousarray(a, np.uint64) for a in (to, source, sizes)]
        code = self._batch(
            *(a.ctypes.data for a in arrays), len(sizes),
            ctypes.addressof(attributes), ctypes.addressof(first), 1,
            ctypes.addressof(failed), stream,
        )  # fmt: skip
        if code:
            raise self._error(f"cuMemcpyBatchAsync, entry {failed.value}", code)

    def _about(self, device: c_int) -> Device:
        name, bus, uuid = (ctypes.create_string_buffer(256) for _ in range(3))
        self._call("cuDeviceGetName", name, c_int(256), device)
        self._call("cuDeviceGetPCIBusId", bus, c_int(256), device)
        self._call("cuDeviceGetUuid_v2", uuid, device)
        version, count = c_int(), c_int()
        self._call("cuDriverGetVersion", byref(version))
        self._call("cuDeviceGetAttribute", byref(count), c_int(_MULTIPROCESSORS), device)
        return Device(
            name.value.decode(errors="replace"), uuid.raw[:16].hex(), bus.value.decode().lower(),
            count.value, version.value, self._batch is not None,
        )  # fmt: skip

    def _batch_call(self) -> Any:
        """cuMemcpyBatchAsync as of CUDA 12.8, None where the driver is older."""
        version, found, status = c_int(), c_void_p(), c_int()
        self._call("cuDriverGetVersion", byref(version))
        if version.value < _BATCH_VERSION:
            return None
        self._call(
            "cuGetProcAddress_v2",
            b"cuMemcpyBatchAsync", byref(found), c_int(_BATCH_VERSION), c_uint64(0), byref(status),
        )  # fmt: skip
        return BatchCall(found.value) if found.value else None

    def _load_kernels(self) -> bool:
        """Whether this driver could compile them."""
        try:
            self._copy_kernel = self._load_kernel("copy_runs")
            self._sum_kernel = self._load_kernel("sum_objects")
        except DriverError as error:
            if error.code not in NO_KERNEL:
                raise
            log.warning(
                "no kernels, short runs are copied one by one, slowly: %s: %s",
                error, NO_KERNEL[error.code],
            )  # fmt: skip
            return False
        return True

    def _load_kernel(self, name: str) -> c_void_p:
        """The kernel of the .ptx file that is called like it."""
        ptx = Path(__file__).with_name(f"{name}.ptx").read_bytes() + b"\0"
        module, function = c_void_p(), c_void_p()
        self._call("cuModuleLoadData", byref(module), ptx)
        self._call("cuModuleGetFunction", byref(function), module, name.encode())
        return function

    def _launch(
        self, kernel: c_void_p, blocks: int, threads: int, table: int, count: int, stream: int
    ) -> None:
        """Begin a kernel that takes a table in device memory and how many things are in it."""
        values = (c_uint64(table), c_uint(count))
        pointers = (c_void_p * 2)(*(ctypes.addressof(value) for value in values))
        self._call(
            "cuLaunchKernel", kernel,
            c_uint(blocks), c_uint(1), c_uint(1), c_uint(threads), c_uint(1), c_uint(1),
            c_uint(0), c_void_p(stream), pointers, None,
        )  # fmt: skip

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._lib, name)(*arguments)
        if code:
            raise self._error(name, code)

    def _error(self, call: str, code: int) -> DriverError:
        text = ctypes.c_char_p()
        if self._lib.cuGetErrorName(c_int(code), byref(text)) == INVALID_VALUE or not text.value:
            return DriverError(call, code)
        return DriverError(call, code, text.value.decode())
