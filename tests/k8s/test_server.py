"""The rendered command lines start the real server, and its probes tell the states apart."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.faulty_adapter import FAULTY
from tests.support.manifests import argv, environment, server
from tests.support.mock_adapter import MOCK
from tests.support.raw import RawClient, RawWorker
from tests.support.server import REPO, free_port, wait_until

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
# Stores that do not end, so that the server has something to wait for when it stops.
STUCK_L2 = json.dumps({"type": FAULTY, "inner": {"type": MOCK}, "hang": ["store"]})
COMPOSE = yaml.safe_load((REPO / "compose.yaml").read_text())["services"]["kv-sidecar"]

Line = tuple[list[str], dict[str, str], list[str]]


class Container:
    """A container's process on this host: its volumes in a folder, free ports, and a small L1."""

    def __init__(self, root: Path, line: Line, **changes: str) -> None:
        words, variables, mounts = line
        self.metrics = free_port()
        for path in mounts:
            (root / path.lstrip("/")).mkdir(parents=True)
        self._paths = {path: str(root / path.lstrip("/")) for path in mounts}
        # Ports and the size are this machine's; all else is as rendered.
        flags = ["--http-port", "0", "--prometheus-port", str(self.metrics)]
        flags += ["--l1-size-gb", "0.1", "--prometheus-host", "127.0.0.1"]
        self.socket = root / "run" / "kv-sidecar" / "mp:5555"
        if "--host=*" in words:
            flags += ["--port", str(free_port())]
        rendered = {name: self._here(value) for name, value in {**variables, **changes}.items()}
        self.log = root / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", *map(self._here, words), *flags],
                env=os.environ | rendered | {"PYTHONPATH": str(REPO)},
                stdout=log,
                stderr=log,
            )

    def _here(self, text: str) -> str:
        for path, folder in self._paths.items():
            text = text.replace(path, folder)
        return text

    def answer(self, probe: dict[str, Any]) -> str:
        """What the kubelet's HTTP request meets: a status code, `refused` or `timeout`."""
        url = f"http://127.0.0.1:{self.metrics}{probe['httpGet']['path']}"
        try:
            with urllib.request.urlopen(url, timeout=probe["timeoutSeconds"]) as reply:
                return str(reply.status)
        except urllib.error.HTTPError as error:
            with error:
                return str(error.code)
        except TimeoutError:
            return "timeout"
        except (urllib.error.URLError, ConnectionError):
            return "refused"

    def stop(self) -> None:
        """At once: a second signal does not wait for what is queued. Leaves no shared memory."""
        for _ in range(100):
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.3)
                return
        self.process.kill()


def rendered(overlay: str) -> Line:
    """Words, variables, and the folders that volumes stand for (but for the real /dev/shm)."""
    container = server(overlay)
    mounts = [m["mountPath"] for m in container["volumeMounts"] if m["mountPath"] != "/dev/shm"]
    return argv(overlay, container), environment(overlay, container), mounts


def composed() -> Line:
    mounts = [volume.split(":", 1)[1] for volume in COMPOSE["volumes"]]
    variables = dict(COMPOSE["environment"])
    del variables["KV_SIDECAR_L1_SIZE_GB"]
    return COMPOSE["command"], variables, [path for path in mounts if path != "/dev/shm"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Container]]:
    """Starts containers; they are stopped when the test ends."""
    started: list[Container] = []

    def start(line: Line, **changes: str) -> Container:
        started.append(Container(tmp_path / str(len(started)), line, **changes))
        return started[-1]

    yield start
    for each in started:
        each.stop()


def probes(overlay: str) -> list[dict[str, Any]]:
    container = server(overlay)
    found = [container[name] for name in PROBES if name in container]
    assert all(probe["httpGet"]["port"] == "kv-metrics" for probe in found)
    return found


@pytest.mark.parametrize("overlay", ["vllm-sidecar", "vllm-node"])
def test_a_rendered_command_line_starts_a_healthy_server(
    run: Callable[..., Container], overlay: str
) -> None:
    started = run(rendered(overlay))
    startup, *others = probes(overlay)
    wait_until(lambda: started.answer(startup) == "200", "started")
    assert {started.answer(probe) for probe in others} == {"200"}
    assert started.socket.exists() == (overlay != "vllm-node")
    started.process.terminate()
    assert started.process.wait(60) == 0, started.log.read_text()


def test_the_compose_files_command_line_starts_a_server(run: Callable[..., Container]) -> None:
    started = run(composed())
    wait_until(lambda: started.answer(probes("vllm-node")[0]) == "200", "healthy")
    started.process.terminate()
    assert started.process.wait(60) == 0, started.log.read_text()


def test_what_probes_meet_from_start_to_end(run: Callable[..., Container]) -> None:
    """Starting, healthy, stuck, healthy again, draining, gone."""
    (startup, liveness, readiness) = probes("vllm-node")
    started = run(rendered("vllm-sidecar"), KV_SIDECAR_L2_ADAPTER=STUCK_L2)
    seen = []

    def is_up() -> bool:
        seen.append(started.answer(startup))
        return seen[-1] == "200"

    wait_until(is_up, "started")
    assert seen[:-1] and set(seen[:-1]) <= {"refused", "timeout", "503"}
    assert started.answer(liveness) == started.answer(readiness) == "200"

    started.process.send_signal(signal.SIGSTOP)
    assert started.answer({**liveness, "timeoutSeconds": 1}) == "timeout"
    started.process.send_signal(signal.SIGCONT)
    wait_until(lambda: started.answer(liveness) == "200", "healthy again")

    with RawClient(f"ipc://{started.socket}") as client:
        worker = RawWorker(client, "worker", 1)
        worker.register()
        worker.prove(list(range(256)), 256)
        worker.close()
    started.process.terminate()
    wait_until(lambda: started.answer(readiness) == "503", "draining")
    assert started.process.poll() is None
    started.stop()
    assert started.answer(readiness) == "refused"
