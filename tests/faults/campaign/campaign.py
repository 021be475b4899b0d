"""Neighbours in turn beside the honest clients, and what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.campaign.honest import EngineMode, HandleMode, Honest
from tests.faults.campaign.target import CHUNK
from tests.support.footprint import Footprint
from tests.support.server import REPO, SHM, Server

# Of the server itself, beside the L1: what all connections hold, one message of the largest being
# decoded, and what lookups and transfers hold (docs/security.md).
MEMORY_LIMIT = 512 << 20
_NEIGHBOUR_GRACE_SECONDS = 60.0


@dataclass
class Campaign:
    """A server with an L2, honest clients, and their findings; empty findings are a success."""

    directory: Path
    seed: int = 0
    findings: list[str] = field(default_factory=list)
    peak: int = 0

    def run(self, names: Sequence[str], seconds: float) -> None:
        """Each neighbour for `seconds`."""
        # A backend that has to be asked, so that lookups are under way for a while.
        disk = {"type": "fs", "base_path": str(self.directory / "l2"), "min_free_gb": 0}
        slow = {"type": "fault_inject", "inner": disk | {"shared": True}}
        slow |= {"delay_seconds": {"find": 0.2, "load": 0.01}}
        flags = ["--l2-adapter", json.dumps(slow)]
        # What neighbours held is given back so long after they are gone.
        flags += ["--worker-reap-timeout-seconds", "10"]
        flags += ["--worker-registration-grace-seconds", "10"]
        server = Server(self.directory, *flags, l1_size_gb=0.125, chunk_size=CHUNK)
        server.start()
        try:
            clients = [HandleMode(server.url, self.seed), EngineMode(server.url, self.seed)]
            with self._watched(server):
                for client in clients:
                    client.warm_up()
                    client.start()
                for number, name in enumerate(names):
                    self._beside(server, clients, name, number, seconds)
                for client in clients:
                    client.stop()
            self._judge_end(server, clients)
        finally:
            server.stop()

    def _beside(
        self, server: Server, clients: Sequence[Honest], name: str, number: int, seconds: float
    ) -> None:
        """One neighbour, from its start to its end."""
        target = {"port": server.port, "http_port": server.http_port, "seconds": seconds}
        target |= {"l2": str(self.directory / "l2"), "seed": self.seed + number}
        command = [sys.executable, "-m", "tests.faults.campaign.neighbour", name]
        self.peak, began = 0, time.monotonic()
        before = [len(client.problems) for client in clients]
        counts = [(client.requests, client.chunks_compared) for client in clients]
        for client in clients:
            client.slowest = 0.0
        process = subprocess.Popen(
            [*command, json.dumps(target)], cwd=REPO, env=os.environ | {"PYTHONPATH": str(REPO)}
        )
        try:
            if process.wait(seconds + _NEIGHBOUR_GRACE_SECONDS):
                self.findings.append(f"{name}: the neighbour itself failed")
        except subprocess.TimeoutExpired:
            self.findings.append(f"{name}: the neighbour does not end")
            process.kill()
            process.wait()
        for client, known in zip(clients, before, strict=True):
            self.findings += [f"{name}: {client.model}: {p}" for p in client.problems[known:]]
        if not server.running:
            self.findings.append(f"{name}: the server died\n{server.stderr()[-2000:]}")
        if self.peak > MEMORY_LIMIT:
            self.findings.append(f"{name}: {self.peak >> 20} MiB of memory")
        slowest = max(client.slowest for client in clients)
        done = sum(c.requests - count for c, (count, _) in zip(clients, counts, strict=True))
        loaded = sum(c.chunks_compared - n for c, (_, n) in zip(clients, counts, strict=True))
        print(
            f"{name:40} {time.monotonic() - began:5.1f} s, {done:6} requests, {loaded:5} chunks "
            f"loaded, slowest {slowest:4.2f} s, {self.peak >> 20:5} MiB", flush=True,
        )  # fmt: skip

    @contextmanager
    def _watched(self, server: Server) -> Iterator[None]:
        """The server's memory, a few times a second."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.1) and server.running:
                self.peak = max(self.peak, Footprint.of(server).resident)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _judge_end(self, server: Server, clients: Sequence[Honest]) -> None:
        """Nothing is held when all have gone, and nothing is left when the server has."""
        for client in clients:
            self.findings += [p for p in client.problems if "end" in p]
            if not client.chunks_compared:
                self.findings.append(f"{client.model} has compared nothing")
        if not server.running:
            return
        if "did not run" in server.stderr():
            self.findings.append("work was taken for a stall")
        try:
            server.assert_no_leases()
        except AssertionError:
            self.findings.append(f"{server.leases()} leases are left")
        if server.terminate():
            self.findings.append("the server did not end well")
        self.findings += [f"{p} is left" for p in SHM.iterdir() if server.shm_name in p.name]
