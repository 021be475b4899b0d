"""A server with a fake GPU: its faults, its child process, what the child has mapped."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.fake_gpu import PREFIX, SHM
from tests.support.gpu_worker import GpuPool, GpuWorker
from tests.support.l2 import adapter_flags
from tests.support.raw import RawClient, decode, make_key
from tests.support.server import Server, wait_until

CHILD_MODULES = (b"tests.support.fake_gpu\0", b"sidecar.engines.cuda\0")
BLOCKS_A_CHUNK = 4
SOURCE, TARGET = [9, 2, 30, 7, 5, 33, 12, 21], [50, 41, 60, 38, 44, 61, 47, 55]
NO = [b"", False]


class GpuSite:
    """One server, a client, and the workers made through it."""

    def __init__(self, server: Server) -> None:
        self.server, self._faults = server, server.log.parent / "faults.json"
        self.client = RawClient(server.url)
        self._workers: list[GpuWorker] = []

    def worker(self, instance: int, pool: GpuPool | None = None, model: str = "gpu") -> GpuWorker:
        """A registered worker."""
        made = GpuWorker(self.client, model, instance, pool)
        self._workers.append(made)
        made.register()
        return made

    def fail(self, *faults: dict[str, Any]) -> None:
        """From now on the driver misbehaves like this."""
        new = self._faults.with_suffix(".new")
        new.write_text(json.dumps(faults))
        new.rename(self._faults)

    def answer(self, frames: Sequence[bytes]) -> Any:
        """The result of a request that was sent; the server's probes come in between."""
        return self.answers(frames)[0]

    def answers(self, *requests: Sequence[bytes]) -> list[Any]:
        """The results of several, in whichever order they come."""
        found: dict[bytes, Any] = {}
        wanted = [frames[0] for frames in requests]
        while not found.keys() >= set(wanted):
            reply = self.client.receive()
            if reply[0] in wanted:
                found[reply[0]] = decode(reply[2])
        return [found[number] for number in wanted]

    def children(self) -> list[int]:
        """The pids of the GPUs' processes."""
        assert self.server.process is not None
        tasks = Path(f"/proc/{self.server.process.pid}/task").glob("*/children")
        pids = [int(pid) for task in tasks for pid in task.read_text().split()]
        return sorted(pid for pid in pids if _is_running(pid))

    def child(self) -> int:
        (pid,) = self.children()
        return pid

    def has_mapped(self, pool: GpuPool) -> bool:
        return any(pool.name in _maps(pid) for pid in self.children())

    def kill_child(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.child(), number)

    def found(self, key: Any) -> int:
        """Chunks that a lookup finds; its leases are given back."""
        free = {**key, "worker_id": None}
        chunks = int(self._workers[0].lookup(free))
        self.client.call("free_lookup_locks", free, 1)
        return chunks

    def reregister(self, worker: GpuWorker) -> None:
        """What a stock client does: it registers when its pings go from False to True."""
        answers: list[bool] = []

        def told() -> bool:
            answers.append(self.client.call("ping", worker.instance))
            return answers[-2:] == [False, True]

        wait_until(told, "the worker is told to register again")
        worker.register()

    def close(self) -> None:
        """Leave nothing behind for the next test: no worker, no object, no process."""
        self.fail()
        for worker in self._workers:
            worker.close()
        self.client.call("clear", True)
        self.server.assert_no_leases()
        self.client.close()
        wait_until(lambda: not self.children(), "the GPUs' processes ended")


def key_of(seed: int, chunks: int, model: str = "gpu", chunk: int = 64) -> dict[str, Any]:
    """The key of a request of its own."""
    tokens = [seed, *range(1, chunks * chunk)]
    return make_key(tokens, 0, len(tokens), model=model, request=f"{model}-{seed}")


def _maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""


def _is_running(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(module in command for module in CHILD_MODULES)


def shuffled(pool: GpuPool, seed: int = 0) -> list[int]:
    """All blocks but the null block, in random order: few neighbours, nothing to be merged."""
    return [int(b) for b in np.random.default_rng(seed).permutation(np.arange(1, pool.blocks))]


def expect_moved(pool: GpuPool, before: Any, source: list[int], target: list[int]) -> None:
    """`target` holds what `source` held before; every other byte is as it was."""
    expected = before.copy()
    expected[:, target] = before[:, source]
    assert np.array_equal(pool.data, expected)


def round_trip(worker: GpuWorker, chunks: int, seed: int = 7) -> None:
    """Store, look up, retrieve into other blocks; every byte of the pool compared."""
    ids, count = shuffled(worker.pool, seed), chunks * BLOCKS_A_CHUNK
    source, target = ids[:count], ids[count : 2 * count]
    key, before = key_of(seed, chunks, worker.model), worker.pool.data.copy()
    assert worker.store(key, source) == [b"", True]
    assert np.array_equal(worker.pool.data, before), "a store writes nothing"
    assert worker.lookup({**key, "worker_id": None}) == chunks
    assert worker.retrieve(key, target) == [b"", True]
    expect_moved(worker.pool, before, source, target)


def prove(worker: GpuWorker, key: Any) -> None:
    """What is cached under `key` is what SOURCE holds."""
    worker.pool.data[:, TARGET] = 0
    assert worker.retrieve(key, TARGET) == [b"", True]
    assert np.array_equal(worker.pool.data[:, TARGET], worker.pool.data[:, SOURCE])


def stored(worker: GpuWorker, seed: int) -> Any:
    """The key of a request that is cached now."""
    key = key_of(seed, 2, worker.model)
    assert worker.store(key, SOURCE) == [b"", True]
    return key


def fake_gpu(folder: Path, seconds: float = 0) -> dict[str, str]:
    """The environment of a server whose GPUs are fakes, with all deadlines of `seconds`."""
    return {
        "KV_SIDECAR_SERVER_CMD": f"{sys.executable} -m tests.support.fake_gpu_server serve",
        "FAKE_GPU_FAULTS": str(folder / "faults.json"),
        "FAKE_GPU_SECONDS": str(seconds),
        "FAKE_GPU_OWNER": str(os.getpid()),
    }


@contextmanager
def gpu_server_in(folder: Path, environment: dict[str, str], *flags: str) -> Iterator[Server]:
    """A server with this environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = Server(folder, *flags).start()
    yield server
    server.stop()
    for left in SHM.glob(f"{PREFIX}{os.getpid()}_*"):
        left.unlink()


def files_server_in(
    folder: Path, seconds: float, *flags: str, open_seconds: float = 0, **adapter: Any
) -> AbstractContextManager[Server]:
    """A server whose fake GPUs move files of `folder`/l2; `folder`/files says what happens to all.

    `seconds` are all deadlines of its children, which take `open_seconds` to get ready for files.
    `adapter` are more settings of the adapter.
    """
    environment = fake_gpu(folder, seconds) | {
        "FAKE_FILES": str(folder / "files"),
        "FAKE_OPEN_SECONDS": str(open_seconds),
    }
    where = {"file_path": str(folder / "l2"), "use_direct_io": False}
    fixed = {"type": "nixl_store", "backend": "GDS", "backend_params": where}
    settings = {"min_free_gb": 0} | adapter | fixed
    return gpu_server_in(folder, environment, *adapter_flags(**settings), *flags)


def wait_moving_files(site: GpuSite) -> None:
    def ready() -> bool:
        return all(worker["moves_files"] for worker in site.server.status()["workers"])

    wait_until(ready, "the GPU moves files")


@pytest.fixture(scope="module")
def gpu_server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """One server for the tests of a module; its children's faults are in `faults.json`.

    GPU_SECONDS of the module shortens all deadlines of the children.
    """
    folder = tmp_path_factory.mktemp("gpu")
    seconds = getattr(request.module, "GPU_SECONDS", 0)
    with gpu_server_in(folder, fake_gpu(folder, seconds)) as server:
        yield server


@pytest.fixture
def gpu_site(gpu_server: Server) -> Iterator[GpuSite]:
    site = GpuSite(gpu_server)
    yield site
    site.close()
