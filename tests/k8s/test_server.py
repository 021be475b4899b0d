"""The rendered command lines start the real server, and its probes tell the states apart."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
import zmq

from connectors import offloading
from connectors.native.arena import Arenas
from connectors.native.connection import Dealer
from connectors.native.membership import Membership
from connectors.native.settings import Settings
from connectors.native.wire import Join
from connectors.worker import connectors_of
from tests.support import native
from tests.support.faulty_adapter import FAULTY
from tests.support.manifests import (
    argv,
    cached_worker,
    container,
    environment,
    server,
)
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
        # Ports and the memory are this machine's; all else is as rendered.
        flags = ["--http-port", "0", "--prometheus-port", str(self.metrics)]
        flags += ["--l1-size-gb", "0.1", "--prometheus-host", "127.0.0.1"]
        flags += ["--shm-name", f"kvtest_pod_{self.metrics}", "--l1-keep-seconds", "0"]
        self.socket = root / "run" / "kv-sidecar" / "mp:5555"
        if "--host=*" in words:
            flags += ["--port", str(free_port())]
        rendered = {name: self.here(value) for name, value in {**variables, **changes}.items()}
        self.log = root / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "sidecar", *map(self.here, words), *flags],
                env=os.environ | rendered | {"PYTHONPATH": str(REPO)},
                stdout=log,
                stderr=log,
            )

    def here(self, text: str) -> str:
        """Paths of the container as those of this host."""
        return _replaced(text, self._paths)

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


def _replaced(text: str, changes: Mapping[str, str]) -> str:
    for old, new in changes.items():
        text = text.replace(old, new)
    return text


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


def test_the_client_that_is_copied_needs_no_package_of_ours(tmp_path: Path) -> None:
    client = container(cached_worker("vllm-sidecar-native"), "kv-connector")
    here = {"/opt/kv-sidecar/": f"{REPO}/", "/opt/kv-connector": str(tmp_path)}
    words = [_replaced(word, here) for word in client["command"]]
    for _ in range(2):  # the second is that of a node that has restarted
        subprocess.run(words, check=True, timeout=60)

    code = (
        "import connectors.native.membership as client, connectors.offloading, sys; "
        "print(client.__file__, any(m.startswith('sidecar') for m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == [f"{tmp_path}/connectors/native/membership.py", "False"], done
    assert (tmp_path / f"{offloading.MODULE.replace('.', '/')}.py").exists()


def test_a_worker_meets_its_cache_by_the_rendered_address(run: Callable[..., Container]) -> None:
    """A worker's process by vLLM's own connector: it maps the arena, and its engine is ready."""
    overlay = "vllm-sidecar-native"
    started = run(rendered(overlay))
    config = environment(overlay, container(cached_worker(overlay), "main"))["KV_TRANSFER_CONFIG"]
    extra = connectors_of(json.loads(config))[offloading.NAME]
    url = started.here(Settings.read(extra).url)
    assert url == f"ipc://{started.socket}"
    wait_until(lambda: started.answer(probes(overlay)[0]) == "200", "started")

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    engine = native.Engine(url)
    (worker,) = engine.members
    member = Membership(Join(**worker.ask), Arenas(), functools.partial(Dealer, context, url))
    member.start()
    try:
        wait_until(lambda: engine.attach()["ready"], "the worker has the arena mapped")
    finally:
        member.stop()
        worker.client.close()
        engine.client.close()
        context.term()


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
