"""Dynamo's frontend with its KV router before two nodes, each a worker and a sidecar, on CPUs.

The programs are those of `launch/agg.sh --client native --router-mode kv`. On one machine the nodes
differ in their ports, or are in network namespaces: a worker knows its own sidecar alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.common import BenchError
from bench.routing.decisions import LOG, Decision, decisions
from connectors import offloading
from connectors.offloading import NativeServer
from examples.demo.process import Process
from launch import cpu, hardware, health, options, programs
from launch.plan import Program
from launch.ports import Ports
from launch.programs import Setting
from launch.workers import workers

MODEL = "small"
COUNT = 2
BLOCK = 128  # tokens, of vLLM's CPU build
_READY_SECONDS = 300.0
_LOG_SECONDS = 60.0
_POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`gpu_blocks` are those of one worker, `l1_gb` the size of one sidecar's L1.

    Unless `announced`, the workers' KV events tell what is on the GPU only.
    """

    model: Path
    gpu_blocks: int
    l1_gb: float
    announced: bool = True


@dataclass(frozen=True)
class Place:
    """Where a node is: its address for others, what starts a program there, and the frontend's
    address for it."""

    address: str = "127.0.0.1"
    before: tuple[str, ...] = ()
    frontend: str = "127.0.0.1"


HERE = (Place(),) * COUNT


@dataclass(frozen=True)
class Node:
    """The URLs of a worker's metrics and of its sidecar's."""

    worker: str
    sidecar: str


@dataclass(frozen=True)
class Cluster:
    """Running: where to ask, and what the router logs."""

    url: str
    nodes: tuple[Node, ...]
    log: Path

    def decisions(self) -> list[Decision]:
        return decisions(self.log.read_text(errors="replace"))

    def wait_decided(self, count: int) -> list[Decision]:
        """All so far, when there are `count`: the log may come after the answer."""
        deadline = time.monotonic() + _LOG_SECONDS
        while len(found := self.decisions()) < count:
            if time.monotonic() > deadline:
                raise BenchError(f"{len(found)} of {count} decisions are in the router's log")
            time.sleep(_POLL_SECONDS)
        return found


@contextmanager
def running(plan: Plan, directory: Path, places: Sequence[Place] = HERE) -> Iterator[Cluster]:
    """Ready for requests; all of it is ended on the way out. Logs are in `directory`.

    Raises ProcessFailed or BenchError where it does not get ready, and what `launch` raises where
    Dynamo or vLLM is not there.
    """
    directory.mkdir(parents=True)
    frontend, nodes = _programs(plan, directory, places)
    every = [frontend, *(program for node in nodes for program in node)]
    processes: list[Process] = []
    try:
        for program in every:
            processes.append(_start(program, directory))
        _wait_ready(every, processes)
        yield Cluster(
            frontend.check.base,
            tuple(Node(worker.check.base, sidecar.check.base) for sidecar, worker in nodes),
            processes[0].log,
        )
    finally:
        with ThreadPoolExecutor(len(every)) as pool:
            list(pool.map(Process.stop, processes))


def _programs(
    plan: Plan, directory: Path, places: Sequence[Place]
) -> tuple[Program, list[tuple[Program, Program]]]:
    """The frontend; sidecar and worker of each node."""
    ports, setting = Ports(), _setting(plan, directory)
    frontend = programs.frontend(setting, ports)
    environment = {**frontend.environment, **_listening(places[0].frontend), "DYN_LOG": LOG}
    nodes = [_node(index, plan, setting, ports, place) for index, place in enumerate(places)]
    return replace(frontend, environment=environment), nodes


def _listening(address: str) -> dict[str, str]:
    """Where Dynamo's programs listen for each other."""
    names = ("DYN_SYSTEM_HOST", "DYN_TCP_RPC_HOST", "DYN_EVENT_PLANE_HOST")
    return dict.fromkeys(names, address)


def _setting(plan: Plan, directory: Path) -> Setting:
    given = options.parse(
        "agg",
        [
            *("--client", "native", "--router-mode", "kv", "--l1-size-gb", f"{plan.l1_gb:g}"),
            *("--http-port", "0", "--sidecar-port", "0", "--sidecar-http-port", "0"),
            *("--", "--num-gpu-blocks-override", str(plan.gpu_blocks)),
        ],
        {},
    )
    return Setting(
        options=given,
        model=str(plan.model),
        served_name=MODEL,
        own_model=True,
        on_cpu=True,
        gpus=(),
        python=hardware.worker_python("", dynamo=True),
        discovery=programs.discovery(given, str(directory / "discovery")),
    )


def _node(
    index: int, plan: Plan, setting: Setting, ports: Ports, place: Place
) -> tuple[Program, Program]:
    admin = ("--http-host", place.address)
    cache = programs.sidecar(replace(setting.options, sidecar_args=admin), ports)
    if not plan.announced:
        setting = _unannounced(setting, cache.ports["mp"])
    (worker,), _ = workers(setting, cache, ports, hardware.installed(setting.python))
    own = _listening(place.address) | {"VLLM_CPU_OMP_THREADS_BIND": cpu.cores(index, COUNT)}
    worker = replace(worker, environment=worker.environment | own)
    return (
        _placed(replace(cache, name=f"sidecar-{index}"), place),
        _placed(replace(worker, name=f"worker-{index}"), place),
    )


def _placed(program: Program, place: Place) -> Program:
    check = replace(program.check, base=programs.base(place.address, program.ports["http"]))
    return replace(program, argv=(*place.before, *program.argv), check=check)


def _unannounced(setting: Setting, port: int) -> Setting:
    """With vLLM's own class, which loads and stores the same and describes nothing."""
    config = offloading.kv_transfer_config(NativeServer(port=port))
    del config["kv_connector_module_path"]
    del config["kv_connector_extra_config"][offloading.DESCRIBING]
    arguments = (*setting.options.worker_args, "--kv-transfer-config", json.dumps(config))
    return replace(setting, options=replace(setting.options, worker_args=arguments))


def _start(program: Program, directory: Path) -> Process:
    removed = [word for name in program.unset for word in ("-u", name)]
    command = ["env", *removed, *program.argv]
    return Process(program.name, command, directory / f"{program.name}.log", program.environment)


def _wait_ready(every: Sequence[Program], processes: Sequence[Process]) -> None:
    for program, process in zip(every, processes, strict=True):
        process.wait_ready(program.check.base + program.check.path, _READY_SECONDS)
    deadline = time.monotonic() + _READY_SECONDS
    while reason := health.unready(every[0].check):
        if time.monotonic() > deadline:
            raise BenchError(f"the frontend is not ready: {reason}")
        time.sleep(_POLL_SECONDS)
