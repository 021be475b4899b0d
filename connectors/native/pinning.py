"""Page-locks an arena for a GPU's copy engines, piece by piece, as it becomes resident."""

import importlib
import logging
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

import torch

from connectors.native.arena import Arena

logger = logging.getLogger("vllm.kv_sidecar")

# Small enough that the rest of the process gets at its memory map in between.
PIECE_BYTES: Final = 256 << 20
# The sidecar makes some GiB/s resident. It stops where /dev/shm is full.
RESIDENT_SECONDS: Final = 60.0
_POLL_SECONDS: Final = 0.1

# Registers (address, bytes), False if the driver does not; and the opposite.
Register = Callable[[int, int], bool]
Unregister = Callable[[int], None]


def registrar() -> tuple[Register, Unregister]:
    """vLLM's own functions for this device; in 0.31, which has none, those of the CUDA runtime."""
    try:
        found: Any = importlib.import_module("vllm.v1.kv_offload.cpu.host_register")
    except ModuleNotFoundError:
        return _register_cuda, _unregister_cuda
    return found.host_register, found.host_unregister


def pin(
    arena: Arena,
    device: Any,
    register: Register,
    unregister: Unregister,
    check: Callable[[], None],
) -> None:
    """Page-lock `arena` for `device`, until its last user is gone.

    Where that fails it stays pageable: copies are then right all the same, and slower. For a
    thread that may take its time: a GiB takes some tenths of a second. It waits for pieces that
    the sidecar has not made resident yet, and calls `check`, which may raise, meanwhile.
    """
    torch.accelerator.set_device_index(device)
    base = arena.bytes.ctypes.data
    pinned: list[int] = []
    weakref.finalize(arena, _unpin, pinned, unregister)
    for offset in range(0, len(arena.bytes), PIECE_BYTES):
        size = min(PIECE_BYTES, len(arena.bytes) - offset)
        # What locks a page that is not there makes it, in the memory of this process's container.
        if not (_await_resident(arena, offset, size, check) and register(base + offset, size)):
            logger.warning("the arena cannot be page-locked from %d MiB on", offset >> 20)
            _unpin(pinned, unregister)
            return
        pinned.append(base + offset)
    arena.pinned = True


def _await_resident(arena: Arena, offset: int, size: int, check: Callable[[], None]) -> bool:
    deadline = time.monotonic() + RESIDENT_SECONDS
    while not arena.is_resident(offset, size):
        check()
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_SECONDS)
    return True


def _unpin(pinned: list[int], unregister: Unregister) -> None:
    while pinned:
        unregister(pinned.pop())


def _register_cuda(address: int, size: int) -> bool:
    return bool(_runtime().cudaHostRegister(address, size, 0).value == 0)


def _unregister_cuda(address: int) -> None:
    _runtime().cudaHostUnregister(address)


def _runtime() -> Any:
    return torch.cuda.cudart()
