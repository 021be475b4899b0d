"""The driver interface over libcuda."""

import ctypes
import logging
from ctypes import byref, c_size_t, c_uint, c_uint64, c_void_p

import numpy as np

from sidecar.engines.cuda.cuda_h import BatchAttributes, Handle
from sidecar.engines.cuda.driver import Addresses, Batches, Device
from sidecar.engines.cuda.kernels import load_kernels
from sidecar.engines.cuda.library import Library

log = logging.getLogger(__name__)

# Descriptors of one batch call: drivers have been seen to crash at 50,000 (vLLM#49276).
_BATCH = 4096
_ORDER_STREAM, _PREFER_OVERLAP = 1, 1
_NOT_READY = 600
_STREAM_NON_BLOCKING, _LAZY_PEER_ACCESS, _PIN_MAPPED = 1, 1, 2
_EVENT_NO_TIMING, _EVENT_INTERPROCESS = 2, 4
# Kernels of two processes never run at once, so a small grid of ours would only keep inference
# waiting for longer. They do under MPS: there a kernel takes this share of the multiprocessors.
_MPS_SHARE = 20


class LibCuda:
    """The first GPU that the environment shows (CUDA_VISIBLE_DEVICES).

    `kernel_blocks` is the largest grid of `copy_runs`; a block fills a multiprocessor.
    """

    _told_of_sizes = False

    def open(self, batches: Batches) -> Device:
        self.cuda = Library()
        context = c_void_p()
        self._call("cuDevicePrimaryCtxRetain", byref(context), self.cuda.device)
        self._call("cuCtxSetCurrent", context)
        self._batch = self.cuda.batch_call(batches)
        about = self.cuda.about(self._batch is not None)
        self._kernels = load_kernels(self.cuda)
        self.has_kernels = self._kernels is not None
        self.kernel_blocks = max(1, about.multiprocessors // (_MPS_SHARE if about.has_mps else 1))
        self._control = self.new_stream()
        self._word = self.allocate_host(8)
        return about

    def map_memory(self, handle: bytes) -> tuple[int, int | None]:
        address = c_uint64()
        self._call(
            "cuIpcOpenMemHandle_v2",
            byref(address),
            Handle.from_buffer_copy(handle),
            c_uint(_LAZY_PEER_ACCESS),
        )
        return address.value, self._mapped_size(address)

    def unmap_memory(self, address: int) -> None:
        self._call("cuIpcCloseMemHandle", c_uint64(address))

    def open_event(self, handle: bytes) -> int:
        event = c_void_p()
        self._call("cuIpcOpenEventHandle", byref(event), Handle.from_buffer_copy(handle))
        return event.value or 0

    def share_event(self) -> bytes:
        event, handle = c_void_p(), Handle()
        flags = _EVENT_NO_TIMING | _EVENT_INTERPROCESS
        self._call("cuEventCreate", byref(event), c_uint(flags))
        self._call("cuEventRecord", event, c_void_p(self._control))
        self._call("cuIpcGetEventHandle", byref(handle), event)
        return bytes(handle)

    def new_event(self) -> int:
        event = c_void_p()
        self._call("cuEventCreate", byref(event), c_uint(_EVENT_NO_TIMING))
        return event.value or 0

    def destroy_event(self, event: int) -> None:
        self._call("cuEventDestroy_v2", c_void_p(event))

    def record(self, event: int, stream: int) -> None:
        self._call("cuEventRecord", c_void_p(event), c_void_p(stream))

    def is_done(self, event: int) -> bool:
        code = self.cuda.functions.cuEventQuery(c_void_p(event))
        if code not in (0, _NOT_READY):
            raise self.cuda.error("cuEventQuery", code)
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
        assert self._kernels is not None
        self._kernels.copy_runs(table, runs, self.kernel_blocks, stream)

    def sum_objects(self, table: int, objects: int, stream: int) -> None:
        assert self._kernels is not None
        self._kernels.sum_objects(table, objects, stream)

    def read_word(self, address: int) -> int:
        self._call(
            "cuMemcpyAsync",
            c_uint64(self._word), c_uint64(address), c_size_t(8), c_void_p(self._control),
        )  # fmt: skip
        self._call("cuStreamSynchronize", c_void_p(self._control))
        return c_uint64.from_address(self._word).value

    def _mapped_size(self, address: c_uint64) -> int | None:
        """Of an allocation that is mapped at `address`; None if the driver does not tell.

        cuda.h promises an answer for memory of cuMemAlloc only, and NOT_FOUND for other memory.
        """
        base, size = c_uint64(), c_size_t()
        code = self.cuda.functions.cuMemGetAddressRange_v2(byref(base), byref(size), address)
        # Where the driver cut the allocation from a larger block, the range may be the block's.
        rest = base.value + size.value - address.value
        if not code and 0 < rest <= size.value:
            return rest
        if not self._told_of_sizes:
            why = self.cuda.error("cuMemGetAddressRange", code) if code else "another range"
            log.warning("the driver does not tell how large workers' allocations are: %s", why)
            self._told_of_sizes = True
        return None

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
            raise self.cuda.error(f"cuMemcpyBatchAsync, entry {failed.value}", code)

    def _call(self, name: str, *arguments: object) -> None:
        self.cuda.call(name, *arguments)
