"""Starts and stops the two servers, each in its own process group, on free ports."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq
from lmcache.v1.multiprocess.transport.factory import RequestClientFactory

from bench import idle

START_LIMIT = 120.0
ANSWER_LIMIT = 5.0
STOP_LIMIT = 20.0


@dataclass(frozen=True)
class Ready:
    """Seconds from the spawn to the first answer on either port."""

    rpc: float
    http: float


@dataclass
class Server:
    """A running server; `name` is "peer" or "ours"."""

    name: str
    arguments: list[str]
    port: int
    http_port: int
    shm_name: str
    log: Path
    process: subprocess.Popen[bytes] = field(init=False)
    ready: Ready = field(init=False)
    _spawned: float = field(init=False)

    def spawn(self) -> None:
        self._spawned = time.monotonic()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command(self.name), *self.arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self) -> None:
        """Until both ports answer."""
        self.ready = _wait_ready(self.process, self.port, self.http_port, self._spawned, self.log)

    def end(self, number: int) -> None:
        """By this signal."""
        self.process.send_signal(number)
        self.process.wait(STOP_LIMIT)

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self._http(path), timeout=5) as reply:
            return json.load(reply)

    def metric(self, name: str) -> int:
        """The sum of a metric over its labels; 0 before its first use."""
        with urllib.request.urlopen(self._http("/metrics"), timeout=5) as reply:
            lines = reply.read().decode().splitlines()
        values = [line.split()[-1] for line in lines if line.startswith((f"{name}{{", f"{name} "))]
        return int(sum(map(float, values)))

    def post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            self._http(path), json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def clear_l1(self) -> None:
        """Empties the L1 alone; the operation `clear` of the protocol may reach L2, too."""
        self.post("/cache/clear", {"tier": "l1"})

    def cpu_seconds(self) -> float:
        """CPU time of the server and its children so far, ended threads included."""
        return idle.cpu_seconds(idle.tree(self.process.pid))

    def _http(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"

    def wait_populated(self, limit: float = 60.0) -> None:
        """Waits for the arena's pages; a server that reports none has nothing to wait for."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            populated = _find(self.get("/status"), "populated_bytes")
            total = _find(self.get("/status"), "memory_total_bytes")
            if populated is None or total is None or populated >= total:
                return
            time.sleep(0.2)


def _find(document: Any, suffix: str) -> int | None:
    """The first number anywhere in a JSON document whose key ends with `suffix`."""
    items: list[tuple[str, Any]] = []
    if isinstance(document, dict):
        items = list(document.items())
    elif isinstance(document, list):
        items = [("", value) for value in document]
    for key, value in items:
        if isinstance(value, int) and key.endswith(suffix):
            return value
        if (found := _find(value, suffix)) is not None:
            return found
    return None


def command(name: str) -> list[str]:
    """The server's command as installed beside this interpreter."""
    scripts = Path(sys.executable).parent
    if name == "peer":
        return [str(scripts / "lmcache"), "server"]
    script = scripts / "kv-sidecar"
    return [str(script), "serve"] if script.exists() else [sys.executable, "-m", "sidecar", "serve"]


@contextlib.contextmanager
def running(name: str, l1_gb: float, log_dir: Path, flags: Sequence[str] = ()) -> Iterator[Server]:
    """A server that is up; stopped, and its shared memory removed, on every way out."""
    port, http_port = _free_ports(2)
    shm_name = f"bench-{os.getpid()}-{secrets.token_hex(3)}"
    arguments = [
        *("--host", "127.0.0.1", "--port", str(port), "--http-port", str(http_port)),
        *("--l1-size-gb", str(l1_gb), "--supported-transfer-mode", "auto"),
        *("--shm-name", shm_name, "--max-workers", "2", "--eviction-policy", "LRU"),
        *flags,
    ]
    server = Server(name, arguments, port, http_port, shm_name, log_dir / f"{name}.log")
    server.spawn()
    try:
        server.wait_ready()
        yield server
    finally:
        _stop(server.process)
        for segment in Path("/dev/shm").glob(f"*{shm_name}*"):
            segment.unlink(missing_ok=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]


def _wait_ready(
    process: subprocess.Popen[bytes], port: int, http_port: int, start: float, log: Path
) -> Ready:
    """Asks on both ports side by side, so that neither answer is noticed late."""
    with ThreadPoolExecutor(2) as threads:
        stop = threading.Event()
        asked = [
            threads.submit(_first_answer, check, number, start, stop)
            for check, number in ((_answers, port), (_healthy, http_port))
        ]
        try:
            while not all(future.done() for future in asked):
                if process.poll() is not None:
                    code = process.returncode
                    raise RuntimeError(f"the server exited with {code}: {_tail(log)}")
                if time.monotonic() - start > START_LIMIT:
                    raise RuntimeError(f"not ready in {START_LIMIT:.0f} s: {_tail(log)}")
                time.sleep(0.02)
        finally:
            stop.set()
        return Ready(rpc=asked[0].result(), http=asked[1].result())


def _first_answer(
    check: Callable[[int], bool], port: int, start: float, stop: threading.Event
) -> float:
    while not stop.wait(0.01):
        if check(port):
            return time.monotonic() - start
    return float("nan")


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])


def _answers(port: int) -> bool:
    """Whether get_chunk_size is answered; connects only to a port that listens already."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)):
            return False
    context = zmq.Context()
    context.setsockopt(zmq.LINGER, 0)
    client = RequestClientFactory.create(f"tcp://127.0.0.1:{port}", context=context)
    try:
        return bool(client.get_chunk_size().result(ANSWER_LIMIT))
    except TimeoutError:
        return False
    finally:
        client.close()
        context.term()


def _healthy(http_port: int) -> bool:
    try:
        url = f"http://127.0.0.1:{http_port}/healthcheck"
        with urllib.request.urlopen(url, timeout=1) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_LIMIT)
            break
