"""Struct layouts and function types of cuda.h."""

import ctypes
from ctypes import c_char, c_int, c_size_t, c_uint, c_void_p

from sidecar.engines.cuda.driver import HANDLE_BYTES


class Handle(ctypes.Structure):
    """CUipcMemHandle and CUipcEventHandle, both passed by value."""

    _fields_ = (("bytes", c_char * HANDLE_BYTES),)


class BatchAttributes(ctypes.Structure):
    """CUmemcpyAttributes, 24 bytes; the location hints are for managed memory only."""

    _fields_ = (("order", c_uint), ("hints", c_uint * 4), ("flags", c_uint))


_BATCH_ARGUMENTS = (
    c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_void_p, c_size_t, c_void_p, c_void_p,
)  # fmt: skip
BatchCall = ctypes.CFUNCTYPE(c_int, *_BATCH_ARGUMENTS)
