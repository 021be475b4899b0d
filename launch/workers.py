"""The workers of a stack: roles, GPUs or cores, ports."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import connectors
from connectors import hazards, lmcache_mp, offloading, roles, versions, worker
from connectors.arguments import split
from connectors.lmcache_mp import CacheServer
from connectors.nixl import Nixl
from connectors.offloading import NativeServer
from connectors.roles import Role
from launch import cpu
from launch.errors import UsageError
from launch.plan import WORKER, Check, Program
from launch.ports import Ports
from launch.programs import Setting, base

# Dynamo gives requests under way 5 s, then vLLM ends.
_STOP_SECONDS = 60
# The ranks of one worker take ports in a row from the one that it is given.
_RANKS = 16

# What the launcher itself has to know, to see when a worker is ready.
_OWN = {
    "--served-model-name": "give it before the --",
    "--host": "give it before the --",
    "--port": "give --http-port before the --",
}


def workers(
    setting: Setting, cache: Program, ports: Ports, have: versions.Installed
) -> tuple[tuple[Program, ...], tuple[str, ...]]:
    """The workers, decode first, and what their users' arguments override.

    Raises ConnectorError where the installed versions cannot do their roles, or KV would be wrong.
    """
    programs: list[Program] = []
    conflicts: list[str] = []
    for index, (name, role) in enumerate(_names(setting)):
        spec = _spec(setting, role, cache, ports, versions.client(have))
        versions.check(worker.needs(spec.config, spec.program, role), have)
        port = _http_port(setting, index, spec, ports)
        command = worker.command(spec, _arguments(setting, port))
        conflicts += command.conflicts
        conflicts += hazards.check(
            spec, command, have, setting.options.salted_requests, setting.python
        )
        programs.append(_program(setting, name, index, port, spec, command, cache))
    return tuple(programs), tuple(dict.fromkeys(conflicts))


def _names(setting: Setting) -> Iterator[tuple[str, Role]]:
    counts: list[tuple[str, Role, int]] = [
        ("worker", "aggregated", setting.options.workers),
        ("decode", "decode", setting.options.decode),
        ("prefill", "prefill", setting.options.prefill),
    ]
    for name, role, count in counts:
        for index in range(count):
            yield f"{name}-{index}", role


def _spec(setting: Setting, role: Role, cache: Program, ports: Ports, client: str) -> worker.Worker:
    options = setting.options
    port = cache.ports["mp"]
    server: roles.Server
    if options.client == "native":
        server = NativeServer(port=port)
    else:
        server = CacheServer(port=port, transfer_mode=options.transfer_mode, client=client)
    transfer = Nixl(buffer_device="cpu" if setting.on_cpu else None)
    return worker.Worker(
        model=setting.model,
        role=role,
        config=roles.kv_transfer_config(role, server, transfer, options.handoff),
        program="vllm" if options.topology == "vllm" else "dynamo",
        ports=worker.Ports(
            system=ports.block(1),
            side_channel=ports.block(_RANKS),
            kv_events=ports.block(_RANKS) if options.router_mode == "kv" else None,
        ),
        nixl=transfer,
        prefix_caching=options.prefix_caching,
        python=setting.python,
    )


def _http_port(setting: Setting, index: int, spec: worker.Worker, ports: Ports) -> int:
    """Where the worker tells its health: `vllm serve` on the port of its users."""
    wanted = setting.options.http_port
    if spec.program == "dynamo":
        return spec.ports.system
    return ports.take(wanted + index if wanted else 0, "--http-port")


def _arguments(setting: Setting, port: int) -> list[str]:
    """What the stack adds to the role's arguments; the user's own come last and win."""
    options = setting.options
    for argument in split(options.worker_args):
        if argument.name in _OWN:
            raise UsageError(f"{argument.name} is not for the workers: {_OWN[argument.name]}")
    arguments = ["--served-model-name", setting.served_name]
    arguments += cpu.ARGUMENTS if setting.on_cpu else ()
    if options.topology == "vllm":
        arguments += ["--host", options.host, "--port", str(port)]
    return [*arguments, *options.worker_args]


def _program(
    setting: Setting,
    name: str,
    index: int,
    port: int,
    spec: worker.Worker,
    command: worker.Command,
    cache: Program,
) -> Program:
    uses = worker.connectors_of(spec.config)
    host = setting.options.host if spec.program == "vllm" else "127.0.0.1"
    ports = {"http": port}
    if "NixlConnector" in uses:
        ports["nixl"] = spec.ports.side_channel
    if spec.ports.kv_events:
        ports["events"] = spec.ports.kv_events
    return Program(
        name=name,
        argv=command.argv,
        priority=WORKER,
        check=Check(base(host, port)),
        ports=ports,
        environment=command.environment | _environment(setting, index, spec),
        unset=command.unset,
        needs=cache if {lmcache_mp.NAME, offloading.NAME} & uses.keys() else None,
        stop_seconds=_STOP_SECONDS,
    )


def _environment(setting: Setting, index: int, spec: worker.Worker) -> dict[str, str]:
    # `vllm` is found beside its interpreter, not in whatever environment the launcher has.
    found = {"PATH": f"{Path(setting.python).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    found |= {"LMCACHE_TRACK_USAGE": "false"}
    if setting.options.client == "native" and setting.python != sys.executable:
        # Else the worker's environment has to have this package, without its dependencies.
        root = Path(connectors.__file__).parents[1]
        found |= {"PYTHONPATH": str(root)} if (root / "pyproject.toml").is_file() else {}
    if spec.program == "dynamo":
        found |= setting.discovery
    if setting.on_cpu:
        return found | cpu.environment(index, setting.options.worker_count, setting.own_model)
    return found | {"CUDA_VISIBLE_DEVICES": setting.gpus[index]}
