"""A cache server process for tests: started on free ports, watched, and always stopped."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

REPO = Path(__file__).resolve().parents[2]
SHM = Path("/dev/shm")
DEADLINE = 60.0
CHUNK_SIZE = 64
_names = itertools.count()
# The kernel gives a port that it has just given once more: to another test, before the server that
# it was meant for listens. These are below its range, each process of a test run has its own, and
# another run begins elsewhere among them.
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw15").removeprefix("gw")) % 16
_OWN = range(20_000 + _WORKER * 700, 20_000 + (_WORKER + 1) * 700)
_ports = itertools.islice(itertools.cycle(_OWN), secrets.randbelow(len(_OWN)), None)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that none is given again soon."""
    for port in _ports:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("the cycle has no end")


def wait_until(condition: Callable[[], object], what: str, timeout: float = DEADLINE) -> None:
    """Poll until `condition()` is true; AssertionError naming `what` after `timeout` seconds."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"not within {timeout:.0f} s: {what}"
        time.sleep(0.02)


def server_command() -> list[str]:
    """The command under test: KV_SIDECAR_SERVER_CMD, or this repository's own server."""
    given = os.environ.get("KV_SIDECAR_SERVER_CMD")
    return shlex.split(given) if given else [sys.executable, "-m", "sidecar", "serve"]


class Metrics:
    """One scrape of /metrics."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples = [sample for family in families for sample in family.samples]

    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples called `name` whose labels include `labels`."""
        wanted = labels.items()
        return sum(s.value for s in self.samples if s.name == name and wanted <= s.labels.items())


def shown(*instance_ids: int) -> set[int]:
    """How the server shows workers of these ids, which are nobody's business."""
    digests = [hashlib.blake2b(i.to_bytes(8, "big"), digest_size=4).digest() for i in instance_ids]
    return {int.from_bytes(digest, "big") >> 1 for digest in digests}


class Server:
    """One server process; `start()` may be called again after `kill()` on the same ports."""

    def __init__(
        self,
        directory: Path,
        *flags: str,
        l1_size_gb: float = 0.25,
        chunk_size: int = CHUNK_SIZE,
        port: int | None = None,
        shm_name: str | None = None,
    ) -> None:
        self.port = port or free_port()
        self.http_port = free_port()
        self.url = f"tcp://127.0.0.1:{self.port}"
        self.http = f"http://127.0.0.1:{self.http_port}"
        self.shm_name = shm_name or f"kvtest_{os.getpid()}_{next(_names)}"
        self.chunk_size = chunk_size
        self.log = directory / f"{self.shm_name}-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.source = REPO  # whose code it runs; another version's for an upgrade
        self._flags = ["--host", "127.0.0.1", "--port", str(self.port)]
        self._flags += ["--http-host", "127.0.0.1", "--http-port", str(self.http_port)]
        self._flags += ["--l1-size-gb", str(l1_size_gb), "--chunk-size", str(chunk_size)]
        self._flags += ["--shm-name", self.shm_name, "--eviction-policy", "LRU"]
        self._flags += ["--supported-transfer-mode", "auto", *flags]

    def spawn(self) -> None:
        """Start the process and return at once."""
        path = os.pathsep.join(filter(None, [str(self.source), os.environ.get("PYTHONPATH", "")]))
        env = os.environ | {"PYTHONPATH": path, "LMCACHE_TRACK_USAGE": "false"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*server_command(), *self._flags],
                stdout=log,
                stderr=log,
                env=env,
                cwd=self.source,
            )

    def start(self, timeout: float = DEADLINE) -> Server:
        """Start the process and wait until /healthcheck says 200."""
        self.spawn()
        wait_until(self._ready_or_dead, f"server ready; log: {self.log}", timeout)
        assert self.running, f"server exited {self.returncode}:\n{self.stderr()}"
        return self

    def _ready_or_dead(self) -> bool:
        return not self.running or self.healthy()

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def returncode(self) -> int | None:
        return None if self.process is None else self.process.poll()

    def healthy(self) -> bool:
        try:
            return self.request("/healthcheck")[0] == 200
        except OSError:
            return False

    def request(self, path: str, body: Any = None, method: str | None = None) -> tuple[int, str]:
        """(HTTP status, body text); a given `body` is sent as JSON with POST."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"} if data else {}
        message = urllib.request.Request(self.http + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(message, timeout=30) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def status(self) -> Any:
        return json.loads(self.request("/status")[1])

    def metrics(self) -> Metrics:
        return Metrics(self.request("/metrics")[1])

    def l1(self) -> Any:
        return self.status()["storage_manager"]["l1_manager"]

    def leases(self) -> int:
        """Objects held for reading or writing right now, by every account the server gives."""
        l1 = self.l1()
        held = l1["read_locked_count"] + l1["write_locked_count"]
        return int(held + self.metrics().total("lmcache_mp_live_leases"))

    def assert_no_leases(self, timeout: float = DEADLINE) -> None:
        wait_until(lambda: self.leases() == 0, "leases back to zero", timeout)

    def instances(self) -> set[int]:
        """The workers registered now, in either transfer mode, as the server shows their ids."""
        status = self.status()
        handle = status["registered_gpu_ids"]
        return {int(i) for i in [*handle, *status["registered_non_cuda_instance_ids"]]}

    def stderr(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def segments(self) -> list[Path]:
        """What this server's name has in /dev/shm."""
        return sorted(p for p in SHM.iterdir() if self.shm_name in p.name)

    def wait(self, timeout: float = DEADLINE) -> int:
        """Exit code, once the process has ended by itself."""
        assert self.process is not None
        return self.process.wait(timeout)

    def terminate(self, timeout: float = DEADLINE) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(DEADLINE)

    def stop(self) -> None:
        """End the process if it still runs, and remove whatever a crash left in /dev/shm."""
        if self.running:
            try:
                self.terminate(15)
            except subprocess.TimeoutExpired:
                self.kill()
        for path in self.segments():
            path.unlink(missing_ok=True)
