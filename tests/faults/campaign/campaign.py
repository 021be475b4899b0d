"""Neighbours in turn beside the honest clients, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.faults.campaign import files
from tests.faults.campaign.honest import EngineMode, HandleMode, Honest, Sum
from tests.faults.campaign.honest_native import NativeMode
from tests.faults.campaign.target import CHUNK
from tests.support.faulty_adapter import FAULTY
from tests.support.footprint import Footprint
from tests.support.server import REPO, SHM, Server, wait_until

# Of the server itself, beside the L1: docs/security.md says so.
MEMORY_LIMIT = 640 << 20
_GRACE_SECONDS = 60.0
# What these hold of the L1, or store, may leave no room for others.
MAY_REFUSE = {"a worker that never commits", "takes all and dies", "rubbish stored"}
# Beside these there may be nothing to find.
MAY_EMPTY = {"the L1 cleared again and again", *files.ROWS}


def server_of(directory: Path) -> Server:
    """A server whose lookups are under way for a while: its L2 has to be asked."""
    disk = {"type": "fs", "base_path": str(directory / "l2"), "min_free_gb": 0, "shared": True}
    delays = {"find": 0.03, "load": 0.01}
    slow = {"type": FAULTY, "inner": disk, "delay_seconds": delays}
    flags = ["--l2-adapter", json.dumps(slow)]
    # What neighbours held is given back so long after they are gone.
    flags += ["--worker-reap-timeout-seconds", "10"]
    flags += ["--worker-registration-grace-seconds", "10"]
    return Server(directory, *flags, l1_size_gb=0.125, chunk_size=CHUNK)


class Campaign:
    """A server, honest clients, and `findings`; none is a success."""

    def __init__(self, directory: Path, seed: int = 0) -> None:
        self.findings: list[str] = []
        self._directory, self._seed = directory, seed
        self._server = server_of(directory)
        self._clients: list[Honest] = []
        self._peak = 0  # of the server's memory

    def run(self, names: Sequence[str], seconds: float) -> None:
        """Each neighbour for `seconds`."""
        self._server.start()
        try:
            url = self._server.url
            self._clients = [kind(url, self._seed) for kind in (HandleMode, EngineMode, NativeMode)]
            with self._watched():
                for client in self._clients:
                    client.warm_up()
                    client.start()
                self._take_turns(names, seconds)
                for client in self._clients:
                    client.stop()
            self._judge_end()
        finally:
            self._server.stop()

    def _take_turns(self, names: Sequence[str], seconds: float) -> None:
        """While one is at it the next one starts, which takes a while."""
        processes = (self._launch(name, number, seconds) for number, name in enumerate(names))
        after = next(processes)
        for name in names:
            process, after = after, next(processes, None)  # type: ignore[assignment]
            began, self._peak = time.monotonic(), 0
            self._let(process, name, seconds)
            took = time.monotonic() - began
            rounds = self._judge_clients(name)
            self._judge_server(name)
            print(
                f"{name:40} {took:5.1f} s, {sum(each.requests for each in rounds):6} requests, "
                f"{sum(each.chunks for each in rounds):5} chunks loaded, slowest "
                f"{max(each.slowest for each in rounds):4.2f} s, {self._peak >> 20:5} MiB",
                flush=True,
            )

    def _judge_clients(self, name: str) -> list[Sum]:
        """What they have done and met. Each has compared something, in the end."""
        with suppress(AssertionError):
            wait_until(lambda: name in MAY_EMPTY or all(c.sum.chunks for c in self._clients), name)
        rounds = [client.take() for client in self._clients]
        for client, each in zip(self._clients, rounds, strict=True):
            found = each.problems + (each.refusals if name not in MAY_REFUSE else [])
            if not each.chunks and name not in MAY_EMPTY:
                found.append("has compared nothing")
            counts = Counter(found).items()
            self.findings += [f"{name}: {client.model}: {what} ({n})" for what, n in counts]
        return rounds

    def _launch(self, name: str, number: int, seconds: float) -> subprocess.Popen[bytes]:
        server = self._server
        target = {"port": server.port, "http_port": server.http_port, "seconds": seconds}
        target |= {"l2": str(self._directory / "l2"), "seed": self._seed + number}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.campaign.neighbour", name, json.dumps(target)],
            stdin=subprocess.PIPE, cwd=REPO, env=os.environ | {"PYTHONPATH": str(REPO)},
        )  # fmt: skip

    def _let(self, process: subprocess.Popen[bytes], name: str, seconds: float) -> None:
        """A neighbour from its beginning to its end."""
        try:
            process.communicate(b"\n", seconds + _GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        if process.returncode:
            self.findings.append(f"{name}: the neighbour itself failed: {process.returncode}")

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Look at the server's memory a few times a second."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.1) and self._server.running:
                self._peak = max(self._peak, Footprint.of(self._server).resident)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _judge_server(self, name: str) -> None:
        if not self._server.running:
            self.findings.append(f"{name}: the server died\n{self._server.stderr()[-2000:]}")
            return
        status, text = self._server.request("/cache/check", {})
        if status != 200:
            self.findings.append(f"{name}: {text}")
        if self._peak > MEMORY_LIMIT:
            self.findings.append(f"{name}: {self._peak >> 20} MiB of memory")

    def _held(self) -> int:
        """Leases and reservations. What waits for a disk that a neighbour has broken is neither."""
        live = self._server.metrics().total("lmcache_mp_live_leases")
        return int(live) + int(self._server.l1()["write_locked_count"])

    def _judge_end(self) -> None:
        """Nothing is held when all have gone, and nothing is left when the server has."""
        server = self._server
        self.findings += [f"{c.model}: {p}" for c in self._clients for p in c.take().problems]
        log = server.stderr().splitlines()
        self.findings += [f"work was taken for a stall: {x}" for x in log if "did not run" in x]
        try:
            wait_until(lambda: not self._held(), "leases back to zero")
        except AssertionError:
            self.findings.append(f"{self._held()} leases and reservations are left")
        if server.terminate():
            self.findings.append("the server did not end well")
        self.findings += [f"{p} is left" for p in SHM.iterdir() if server.shm_name in p.name]
