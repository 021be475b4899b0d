"""A child process from its start to its end."""

import ctypes
import logging
import mmap
import os
import queue
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NoReturn, cast

from sidecar.cache.arena import parts_of
from sidecar.engines.cuda import protocol
from sidecar.engines.cuda.child import Child
from sidecar.engines.cuda.driver import (
    Batches,
    Device,
    Driver,
    DriverError,
    DriverMissing,
    plain_uuid,
)
from sidecar.engines.cuda.lane import Stuck
from sidecar.engines.cuda.numa import PCI_DEVICES, near_part
from sidecar.engines.cuda.pinning import PinnedArena

log = logging.getLogger(__name__)

FAILED = 70
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def main(driver: Driver, arguments: Sequence[str]) -> NoReturn:
    """Serve the GPU that the environment shows. `arguments`: fds of pipe and arena, its size,
    whether copies are begun many at a time (`Batches`), and the NUMA nodes that the arena is on.

    Never returns: the end of the process is what lets go of everything on the GPU, and the
    driver's own clean-up may wait for a GPU that does not answer.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # to the whole group: the server ends us
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=_LOG_FORMAT)
    pipe_fd, arena_fd, size, batches, *nodes = arguments
    pipe, arena = Connection(int(pipe_fd)), mmap.mmap(int(arena_fd), int(size))
    code = 0
    try:
        _serve(driver, pipe, arena, cast(Batches, batches), [int(node) for node in nodes])
    except DriverMissing as error:
        protocol.send(pipe, protocol.Unusable(str(error), error.is_final))
    except (DriverError, Stuck) as error:
        log.error("the GPU is given up: %s", error)
        code = FAILED
    except BaseException:
        log.exception("the GPU is given up")
        code = FAILED
    finally:
        logging.shutdown()
        os._exit(code)


def _serve(
    driver: Driver, pipe: Connection, arena: mmap.mmap, batches: Batches, nodes: Sequence[int]
) -> None:
    device = driver.open(batches)
    _expect(os.environ["CUDA_VISIBLE_DEVICES"], device)
    log.info(
        "%s %s, driver for CUDA %d.%d, %s",
        device.name, device.uuid, device.driver // 1000, device.driver % 1000 // 10,
        "batched copies" if device.has_batches else "no batched copies: long runs one by one",
    )  # fmt: skip
    _stay_near(device)
    part = near_part(device, len(arena), nodes)
    if part is not None:
        protocol.send(pipe, protocol.Near(part))
    near = None if part is None else parts_of(len(arena), len(nodes))[part]
    address = ctypes.addressof(ctypes.c_char.from_buffer(arena))
    child = Child(driver, pipe, PinnedArena(driver, address, len(arena), near))
    inbox: queue.SimpleQueue[protocol.ToChild] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pipe, inbox), daemon=True).start()
    protocol.send(pipe, protocol.Pong(0))
    child.run(inbox)


def _read(pipe: Connection, inbox: "queue.SimpleQueue[protocol.ToChild]") -> None:
    """Hand on what comes over the pipe; without a server there is nothing to live for."""
    with suppress(EOFError, OSError):
        while True:
            inbox.put(protocol.receive_order(pipe))
    os._exit(0)


def _expect(uuid: str, device: Device) -> None:
    """Raises DriverMissing if another device was opened than the one that was asked for."""
    if plain_uuid(device.uuid) != plain_uuid(uuid):
        why = "an instance of it, if MIG is on"
        raise DriverMissing(f"the NVIDIA driver shows {device.uuid} in place of {uuid}: {why}")


def _stay_near(device: Device) -> None:
    """Run on the CPUs of the GPU's NUMA node, where the machine says which those are."""
    with suppress(OSError, ValueError):
        text = (PCI_DEVICES / device.bus_id / "local_cpulist").read_text().strip()
        os.sched_setaffinity(0, _cpus(text) & os.sched_getaffinity(0))


def _cpus(text: str) -> set[int]:
    """The CPUs of a list such as 0-15,32-47."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found
