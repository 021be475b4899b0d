"""The two processes of an engine at the native door, with the connector's own parts, as children.

`python -m tests.support.native_process scheduler|worker URL ENGINE`: each is told what to do in
lines of JSON, and answers in such lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from tests.support.server import DEADLINE, wait_until

PAGE: Final = 3 * 4096  # of a chunk: the only block of a rank
CHUNKS: Final = 4
SECRET: Final = bytes(16)


class Child:
    """One of the processes."""

    def __init__(self, role: str, url: str, engine: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, role, url, engine],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def tell(self, **said: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(said) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        out = self.process.stdout
        assert out is not None and select.select([out], [], [], DEADLINE)[0], "it says nothing"
        return json.loads(out.readline())

    def wait_stopped(self) -> None:
        """Until it has stopped itself."""
        found: list[tuple[int, int]] = []

        def changed() -> int:
            found.append(os.waitpid(self.process.pid, os.WUNTRACED | os.WNOHANG))
            return found[-1][0]

        wait_until(changed, "the child to stop itself")
        assert os.WIFSTOPPED(found[-1][1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def content(chunk: int) -> np.ndarray[Any, np.dtype[np.int8]]:
    """What the worker holds in its block `chunk`."""
    return np.resize(np.frombuffer(name_of(chunk), np.int8), PAGE)


def name_of(chunk: int) -> bytes:
    """The hash of a chunk."""
    return hashlib.sha256(b"of a child" + bytes([chunk])).digest()


def _scheduler(url: str, engine: str) -> None:
    """Plans a store of all chunks, says where, and stays."""
    import zmq
    from vllm.v1.kv_offload.base import ReqContext, ScheduleEndContext, make_offload_key

    from connectors.native import wire
    from connectors.native.connection import Dealer
    from connectors.native.manager import SidecarOffloadingManager

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    attach = wire.Attach(
        engine=engine, incarnation=SECRET, model="native-model", ranks=1, groups=1,
        object_bytes=PAGE, chunk_tokens=16, identity=bytes(32),
    )  # fmt: skip
    manager = SidecarOffloadingManager(lambda: attach, lambda: Dealer(context, url), PAGE, 5.0)
    request = ReqContext(req_id="of a child")
    keys = [make_offload_key(name_of(chunk), 0) for chunk in range(CHUNKS)]
    output = None

    def is_planned() -> bool:
        nonlocal output
        manager.on_schedule_end(ScheduleEndContext((), ()))
        output = manager.prepare_store(keys, request)
        return output is not None and output.keys_to_store == keys

    wait_until(is_planned, "slots for all chunks")
    slots = output.store_spec.block_ids.tolist()
    print(json.dumps({"slots": slots, "server": output.store_spec.server.hex()}), flush=True)
    while True:
        manager.on_schedule_end(ScheduleEndContext((), ()))
        time.sleep(0.01)


def _worker(url: str, engine: str) -> None:
    """Copies what it is told to, and stops in the middle of that."""
    import torch
    import zmq
    from vllm.v1.kv_offload.base import (
        CanonicalKVCacheRef,
        CanonicalKVCaches,
        CanonicalKVCacheTensor,
        GPULoadStoreSpec,
    )

    from connectors.native import wire
    from connectors.native.arena import Arenas
    from connectors.native.connection import Dealer
    from connectors.native.cpu_worker import CpuWorker
    from connectors.native.geometry import Geometry
    from connectors.native.membership import Membership
    from connectors.native.transfer import ArenaSlots

    class Held(CpuWorker):  # type: ignore[misc]
        """Stops, with its process, after the first chunk of a store, whichever thread has that."""

        def _store(self, *chunk: Any) -> int:
            with self.one_at_a_time:
                moved = super()._store(*chunk)
                if not self.held:
                    self.held = True
                    # To this thread: another one that took it could let this one go on for a while.
                    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
            return moved

        one_at_a_time = threading.Lock()
        held = False

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    join = wire.Join(
        engine=engine, incarnation=SECRET, rank=0, ranks=1, object_bytes=PAGE, layout=bytes(32)
    )
    kv = torch.from_numpy(np.stack([content(chunk) for chunk in range(CHUNKS)]))
    caches = CanonicalKVCaches([CanonicalKVCacheTensor(kv, PAGE)], [[CanonicalKVCacheRef(0, PAGE)]])
    arenas = Arenas()
    membership = Membership(join, arenas, lambda: Dealer(context, url))
    membership.start()
    worker = Held(caches, Geometry(1, PAGE, 1, 0), arenas, membership)
    told = json.loads(sys.stdin.readline())
    blocks = GPULoadStoreSpec(list(range(CHUNKS)), [CHUNKS], [0])
    worker.submit_store(1, blocks, ArenaSlots(told["slots"], bytes.fromhex(told["server"])))
    worker.wait({1})
    [result] = worker.get_finished()
    print(json.dumps({"success": result.success}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    roles: dict[str, Callable[[str, str], None]] = {"scheduler": _scheduler, "worker": _worker}
    roles[sys.argv[1]](*sys.argv[2:])
