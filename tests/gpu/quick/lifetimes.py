"""Workers and children that are killed, and what is to be seen of it from outside."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.gpu.quick.gpu import MIB, Gpu, wait
from tests.gpu.quick.report import Report
from tests.gpu.quick.site import Blocks, Worker, key_of
from tests.support.raw import RawClient
from tests.support.server import Server, shown

# The server gives up a connection that is gone for the registration grace.
REAP = ("--worker-reap-timeout-seconds", "2", "--worker-registration-grace-seconds", "2")
_CHUNKS, _IDS = 2, list(range(1, 9))
_PAUSE = 0.05
_NEAR = 100 * MIB  # by which two levels of free memory may differ
_CHILDREN = (b"sidecar.engines.cuda\0", b"tests.gpu.faulty\0")


class Bystander:
    """A worker that has stored, and is to be served whatever happens to others."""

    def __init__(self, report: Report, gpu: Gpu, client: RawClient) -> None:
        self._report, self.gpu = report, gpu
        self.blocks = Blocks(gpu, 64 << 10, 32, 4)
        self.worker, self.key = Worker(client, self.blocks, 1), key_of(1, _CHUNKS)
        self._stored = self.blocks.image()[:, _IDS]
        report.check("a worker stores", self.store())

    def store(self, **changes: str) -> bool:
        """Once more, or under a key that differs in `changes`."""
        return self.worker.store({**self.key, **changes}, _IDS)

    def prove(self, when: str) -> None:
        """What it has stored comes back. Raises WrongBytes."""
        self.blocks.fill(np.zeros(self.blocks.nbytes, np.uint8))
        loaded = self.worker.retrieve(self.key, _IDS)
        self._report.check(f"it is served {when}", loaded)
        if loaded:
            same = np.array_equal(self.blocks.image()[:, _IDS], self._stored)
            self._report.same(f"and its bytes are right {when}", same)

    def register_again(self) -> None:
        """When it is told to, as the stock client does."""
        answers: list[bool] = []

        def told() -> bool:
            answers.append(self.worker.client.call("ping", self.worker.instance))
            return answers[-2:] == [False, True]

        wait(told, "the worker is told to register again", 30, _PAUSE)
        self.worker.register()


def kill_victims(server: Server, kind: str, numbers: Sequence[int]) -> None:
    """Start them, and kill them once all are under way."""
    command = [sys.executable, "-m", "tests.gpu.quick.victim", server.url]
    victims = [
        subprocess.Popen([*command, str(number), kind], stdout=subprocess.PIPE, text=True)
        for number in numbers
    ]
    try:
        for victim in victims:
            assert victim.stdout is not None
            if victim.stdout.readline() != "under way\n":
                raise RuntimeError("a worker did not get under way")
    finally:
        for victim in victims:
            victim.kill()
            victim.communicate()


def wait_forgotten(server: Server, bystander: Bystander, level: int) -> float:
    """Seconds until nothing of the dead is registered, and the GPU's memory is back."""

    def forgotten() -> bool:
        bystander.worker.client.call("ping", bystander.worker.instance)
        return server.instances() == shown(bystander.worker.instance)

    def back() -> bool:
        return bystander.gpu.free_bytes() > level - _NEAR

    seconds = wait(forgotten, "the dead workers are forgotten", 30, _PAUSE)
    return seconds + wait(back, "the GPU's memory is back", 30, _PAUSE)


def child_of(server: Server) -> int:
    """The pid of its GPU's process."""
    assert server.process is not None
    tasks = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    pids = {int(pid) for task in tasks for pid in task.read_text().split()}
    (child,) = [pid for pid in pids if _command(pid)]
    return child


def _command(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return any(module in command for module in _CHILDREN)
