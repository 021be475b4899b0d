"""Real storage servers on free loopback ports, for the tests of L2 adapters.

Each is a context manager that yields the running server, or skips the test if the program is
not installed (`scripts/install.py storage`). They take a free port if they are given none.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import hmac
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

import pytest

from sidecar import shared_libraries
from tests.support.server import REPO, free_port, wait_until

BUCKET = "kv-records"
NODE_PROGRAMS = REPO / ".venv" / "node" / "node_modules" / ".bin"
# s3rver knows this pair alone, azurite that account alone: both are in their manuals.
S3RVER_KEY = "S3RVER"
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Storage:
    """A server process on 127.0.0.1:`port`; `start` may be called again after `kill`."""

    def __init__(self, port: int, *command: str | Path) -> None:
        self.port = port
        self.host_port = f"127.0.0.1:{port}"
        self.url = f"http://{self.host_port}"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when the port is open."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - read if the server does not start
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        wait_until(self._open_or_dead, f"a port of {self._command[0]}")
        assert self._process.poll() is None, self._output()

    def _open_or_dead(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            return True
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def _output(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """As a crash would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()

    @contextmanager
    def running(self) -> Iterator[Storage]:
        self.start()
        try:
            yield self
        finally:
            self.stop()


@contextmanager
def moto(port: int = 0) -> Iterator[Storage]:
    """S3 with the bucket BUCKET; any credentials will do."""
    pytest.importorskip("moto", reason="moto is not installed")
    port = port or free_port()
    server = Storage(port, sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port))
    with server.running():
        urllib.request.urlopen(urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT"))
        yield server


@contextmanager
def s3rver(port: int = 0) -> Iterator[Storage]:
    """S3 with the bucket BUCKET; S3RVER_KEY is its access key and its secret."""
    port = port or free_port()
    with tempfile.TemporaryDirectory() as directory:
        server = Storage(
            port, _node("s3rver"), "--address", "127.0.0.1", "--port", str(port),
            "--directory", directory, "--configure-bucket", BUCKET,
        )  # fmt: skip
        with server.running():
            yield server


@contextmanager
def azurite(port: int = 0) -> Iterator[Storage]:
    """Azure's blob store with the container BUCKET of AZURE_ACCOUNT, whose key is AZURE_KEY.

    The account's URL is the server's with the account as its path.
    """
    port = port or free_port()
    server = Storage(
        port, _node("azurite-blob"), "--blobHost", "127.0.0.1", "--blobPort", str(port),
        "--silent", "--skipApiVersionCheck", "--inMemoryPersistence", "--disableTelemetry",
    )  # fmt: skip
    with server.running():
        _create_container(server.url)
        yield server


@contextmanager
def redis(*flags: str, port: int = 0) -> Iterator[Storage]:
    """A redis-server that keeps nothing on disk."""
    port = port or free_port()
    server = Storage(
        port, _program("redis-server"), "--bind", "127.0.0.1", "--port", str(port),
        "--save", "", "--appendonly", "no", *flags,
    )  # fmt: skip
    with server.running():
        yield server


@contextmanager
def mooncake_master(port: int = 0) -> Iterator[Storage]:
    """A Mooncake master; what was read or looked up is leased for half a second."""
    port, metrics = port or free_port(), free_port()
    if reason := shared_libraries.lack("mooncake"):
        pytest.skip(reason)
    server = Storage(
        port, _program("mooncake_master"), f"--rpc_port={port}", "--rpc_address=127.0.0.1",
        f"--metrics_port={metrics}", "--default_kv_lease_ttl=500",
    )  # fmt: skip
    with server.running():
        yield server


@contextmanager
def etcd(directory: Path) -> Iterator[Storage]:
    """etcd with its data in `directory`: Dynamo's programs find each other there."""
    port, peers = free_port(), free_port()
    url, peer_url = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peers}"
    server = Storage(
        port, _program("etcd"), "--data-dir", directory / "etcd",
        "--listen-client-urls", url, "--advertise-client-urls", url,
        "--listen-peer-urls", peer_url, "--initial-advertise-peer-urls", peer_url,
        "--initial-cluster", f"default={peer_url}",
    )  # fmt: skip
    with server.running():
        yield server


@contextmanager
def nats(directory: Path) -> Iterator[Storage]:
    """NATS with JetStream, in `directory`, for Dynamo's events."""
    port = free_port()
    server = Storage(
        port, _program("nats-server"), "--addr", "127.0.0.1", "--port", str(port),
        "--jetstream", "--store_dir", directory / "nats",
    )  # fmt: skip
    with server.running():
        yield server


@contextmanager
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        yield listener.getsockname()[1]


def _program(name: str) -> str:
    beside_python = os.path.dirname(sys.executable)
    found = shutil.which(name, path=os.pathsep.join([beside_python, os.environ["PATH"]]))
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def _node(name: str) -> Path:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (NODE_PROGRAMS / name).exists():
        pytest.skip(f"{name} is not in {NODE_PROGRAMS}")
    return NODE_PROGRAMS / name


def _create_container(url: str) -> None:
    """PUT with Azure's SharedKey signature: azurite takes no other word for it."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": "2021-08-06"}
    signed = "".join(f"{key}:{value}\n" for key, value in headers.items())
    # The path once for the account and once more, because azurite has the account in its URLs.
    resource = f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
    text = "PUT" + "\n" * 12 + signed + resource
    digest = hmac.digest(base64.b64decode(AZURE_KEY), text.encode(), hashlib.sha256)
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    address = f"{url}/{AZURE_ACCOUNT}/{BUCKET}?restype=container"
    request = urllib.request.Request(address, headers=headers, method="PUT")
    urllib.request.urlopen(request).close()
