"""What the Dockerfiles build, and that it runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors import roles
from connectors.lmcache_mp import CacheServer
from sidecar.engines.cuda.library import OTHER_PLACES
from tests.images.conftest import Buildah
from tests.support.raw import RawClient
from tests.support.server import REPO, SHM, free_port, wait_until


@pytest.fixture(scope="module")
def container(buildah: Buildah, server_image: str) -> str:
    """A container of the server's image, in which commands are run as its user."""
    return buildah("from", "--pull-never", server_image).stdout.strip()


def test_what_the_image_says_of_itself(buildah: Buildah, server_image: str) -> None:
    config = buildah.config(server_image)

    assert config["User"] == "1000:1000"
    assert config["Entrypoint"] == ["kv-sidecar"]
    assert config["Healthcheck"]["Test"] == ["CMD", "kv-sidecar", "wait", "--timeout", "4"]
    assert list(config["ExposedPorts"]) == ["5555/tcp"]
    # Where GKE's device plugin and WSL put the driver.
    places = dict(each.split("=", 1) for each in config["Env"])["LD_LIBRARY_PATH"]
    assert tuple(places.split(":")) == OTHER_PLACES


def test_without_arguments_it_says_what_it_wants(
    buildah: Buildah, server_image: str, container: str
) -> None:
    config = buildah.config(server_image)
    done = buildah("run", container, "--", *config["Entrypoint"], *config["Cmd"])

    assert done.returncode == 0
    assert "--l1-size-gb" in done.stdout


def test_it_has_the_server_and_no_more(buildah: Buildah, container: str) -> None:
    script = "id -u; ls /src 2>&1; ls /opt/kv-sidecar/bin/pip* 2>&1; touch /opt/x 2>&1"
    done = buildah("run", container, "--", "sh", "-c", script)

    user, source, pip, writing = done.stdout.splitlines()
    assert user == "1000"
    assert "No such file" in source and "No such file" in pip
    assert "Permission denied" in writing


def test_workers_of_other_images_copy_their_client_from_it(
    buildah: Buildah, container: str
) -> None:
    """As the init container of the manifests does, whatever Python the image has."""
    copy, look = "cp -rL /opt/kv-sidecar/connectors /tmp/", "cat /tmp/connectors/native/spec.py"
    done = buildah("run", container, "--", "sh", "-c", f"{copy} && {look}")
    assert done.stdout == (REPO / "connectors" / "native" / "spec.py").read_text()


class Running:
    """`kv-sidecar serve` in the container, on free ports, with a Unix socket on a volume's path."""

    def __init__(self, buildah: Buildah, container: str) -> None:
        self._buildah, self._container = buildah, container
        self.admin, self.name = f"http://127.0.0.1:{free_port()}", f"image_{os.getpid()}"
        self.port = free_port()
        flags = ["--l1-size-gb", "0.1", "--chunk-size", "512", "--shm-name", self.name]
        flags += ["--port", str(self.port), "--http-port", self.admin.rpartition(":")[2]]
        flags += ["--l2-adapter", '{"type": "fs", "base_path": "/var/lib/kv-sidecar/l2"}']
        # The process numbers are the host's: there is no namespace of its own.
        script = 'echo $$ > /run/kv-sidecar/pid; exec kv-sidecar serve "$@"'
        self.process = buildah.start("run", container, "--", "sh", "-c", script, "sh", *flags)

    def inside(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self._buildah("run", self._container, "--", *command)

    def signal(self, number: signal.Signals) -> None:
        os.kill(int(self.inside("cat", "/run/kv-sidecar/pid").stdout), number)


@pytest.fixture
def running(buildah: Buildah, container: str) -> Iterator[Running]:
    started = Running(buildah, container)
    yield started
    if started.process.poll() is None:
        started.signal(signal.SIGKILL)
        started.process.wait(60)
    for left in SHM.glob(f"*{started.name}"):
        left.unlink()


def test_the_server_runs(running: Running) -> None:
    """Healthy to its own health check, answering on the wire, gone without a trace on SIGTERM."""
    healthy = running.inside("kv-sidecar", "wait", "--timeout", "30", "--url", running.admin)
    assert healthy.returncode == 0, healthy.stderr
    with RawClient(f"tcp://127.0.0.1:{running.port}") as client:
        assert client.greet() == 512
    with urllib.request.urlopen(f"{running.admin}/status", timeout=30) as reply:
        assert json.load(reply)["is_healthy"] is True
    (segment,) = SHM.glob(f"lmcache_l1_pool_{running.name}")
    assert segment.stat().st_uid == 1000

    running.signal(signal.SIGTERM)
    assert running.process.wait(60) == 0
    wait_until(lambda: not list(SHM.glob(f"*{running.name}")), "nothing left in /dev/shm")


def build_worker(buildah: Buildah, base: str, lmcache: str) -> subprocess.CompletedProcess[str]:
    dockerfile = str(REPO / "Dockerfile.worker")
    given = ["--build-arg", f"BASE={base}", "--build-arg", f"LMCACHE={lmcache}"]
    return buildah.build("worker", "-f", dockerfile, *given, str(REPO))


def test_a_worker_image_has_the_connectors(buildah: Buildah, worker_base: str) -> None:
    done = build_worker(buildah, worker_base, lmcache="")
    assert done.returncode == 0, done.stderr
    worker = buildah("from", "--pull-never", "localhost/worker").stdout.strip()

    printed = buildah("run", worker, "--", "kv-sidecar", "connector", "--role", "aggregated")
    assert json.loads(printed.stdout) == roles.aggregated(CacheServer())
    assert buildah.config("localhost/worker")["User"] == "1000"


def test_a_worker_image_keeps_the_versions_of_its_base(buildah: Buildah, worker_base: str) -> None:
    """What needs other ones is refused when the image is built."""
    done = build_worker(buildah, worker_base, lmcache="pyyaml<6")
    assert done.returncode != 0
    assert "constraint" in done.stdout + done.stderr


def test_the_context_is_only_what_is_copied() -> None:
    allowed = {
        line[1:] for line in (REPO / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    copied = set()
    for name in ("Dockerfile", "Dockerfile.worker"):
        for line in Path(REPO / name).read_text().splitlines():
            if line.startswith("COPY ") and "--from" not in line:
                copied |= set(line.split()[1:-1])
    assert copied == allowed
