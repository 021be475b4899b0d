"""`kv-sidecar connector` and `kv-sidecar worker-args`: what their options mean, what they print."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from connectors import hazards, lmcache_v1, pairs, roles, versions
from connectors.arguments import compact
from connectors.lmcache_mp import CacheServer, TransferMode
from connectors.nixl import BufferDevice, Nixl
from connectors.option_types import package_version, port
from connectors.roles import Handoff, Role
from connectors.worker import DEFAULT_PORTS, Ports, Program, Worker, command, needs

COMMANDS = ("connector", "worker-args")

_V1_ROLES: dict[Role, Literal["kv_both", "kv_producer", "kv_consumer"]] = {
    "aggregated": "kv_both",
    "prefill": "kv_producer",
    "decode": "kv_consumer",
}


def add_commands(commands: Any) -> None:
    """Add both commands to argparse's `add_subparsers()`."""
    connector = commands.add_parser(
        "connector",
        help="print a role's --kv-transfer-config",
        usage="%(prog)s --role ROLE [OPTION...]",
        epilog="What the worker's other options make of it, as --enable-lora, is not seen here: "
        "`kv-sidecar doctor -- COMMAND` looks at the whole.",
    )
    worker = commands.add_parser(
        "worker-args",
        help="print the command line of a worker",
        usage="%(prog)s --role ROLE --model MODEL [OPTION...] [-- ...]",
        epilog="Arguments after -- go to the worker and win over those of the role; "
        "`kv-sidecar doctor -- LINE` looks for what is wrong with the whole.",
    )
    for parser in (connector, worker):
        _add_connector_options(parser)
    _add_worker_options(worker)


def run(given: argparse.Namespace, user_arguments: Sequence[str]) -> int:
    """Print what `given` asks for, warnings to stderr.

    Raises ConnectorError where no worker could run with it.
    """
    transfer = _nixl(given)
    have = _versions(given)
    config = _config(given, transfer, versions.client(have or {}))
    program = given.program if given.command == "worker-args" else None
    if have:
        versions.check(needs(config, program, given.role), have)
    if given.command == "connector":
        print(compact(config) if config else "")
        return 0
    worker = _worker(given, config, transfer)
    line = command(worker, user_arguments)
    python = sys.executable if have and not given.packages else ""
    unchecked = hazards.check(worker, line, have, given.salted_requests, python)
    for warning in (*line.conflicts, *unchecked):
        _warn(warning)
    print(line.shell())
    return 0


def _warn(text: str) -> None:
    print(f"kv-sidecar: warning: {text}", file=sys.stderr)


def _versions(given: argparse.Namespace) -> versions.Installed | None:
    """What the worker has, as far as it is known."""
    if given.packages:
        return pairs.assumed(dict(given.packages))
    return None if given.skip_version_check else versions.installed()


def _config(given: argparse.Namespace, transfer: Nixl, client: str) -> dict[str, Any] | None:
    if given.lmcache_config and given.role in _V1_ROLES:
        return lmcache_v1.kv_transfer_config(_V1_ROLES[given.role])
    server = CacheServer(
        host=given.host,
        port=given.port,
        urls=tuple(given.server_url),
        transfer_mode=given.transfer_mode,
        heartbeat_seconds=given.heartbeat,
        timeout_seconds=given.timeout,
        client=client,
    )
    for address in server.ipv6_addresses:
        _warn(f"lmcache's client connects by IPv4 only, and never to {address}")
    return roles.kv_transfer_config(given.role, server, transfer, given.handoff)


def _nixl(given: argparse.Namespace) -> Nixl:
    return Nixl(
        buffer_device=given.buffer_device,
        backends=tuple(given.nixl_backend),
        ucx_tls=getattr(given, "ucx_tls", ""),
        ucx_net_devices=getattr(given, "ucx_net_devices", ""),
    )


def _worker(given: argparse.Namespace, config: dict[str, Any] | None, transfer: Nixl) -> Worker:
    usual = DEFAULT_PORTS[given.role]
    return Worker(
        model=given.model,
        role=given.role,
        config=config,
        program=given.program,
        ports=Ports(
            system=given.system_port or usual.system,
            side_channel=given.side_channel_port or usual.side_channel,
            kv_events=given.kv_events_port,
        ),
        nixl=transfer,
        side_channel_host=given.side_channel_host,
        prefix_caching=given.prefix_caching,
        lmcache_config=given.lmcache_config,
        python=given.python,
    )


def _add_connector_options(parser: argparse.ArgumentParser) -> None:
    _add_role(parser.add_argument)
    _add_versions(parser.add_mutually_exclusive_group().add_argument)
    _add_sidecar(parser.add_argument_group("sidecar").add_argument)
    _add_transfer(parser.add_argument_group("transfer").add_argument)


def _add_role(add: Callable[..., Any]) -> None:
    add(
        "--role",
        required=True,
        choices=get_args(Role),
        metavar="ROLE",
        help=", ".join(get_args(Role)),
    )
    add(
        "--handoff",
        choices=get_args(Handoff),
        default="nixl",
        metavar="WAY",
        help="prefill to decode: nixl (default), or cache",
    )


def _add_versions(add: Callable[..., Any]) -> None:
    add(
        "--for",
        dest="packages",
        action="append",
        type=package_version,
        default=[],
        metavar="P==V",
        help="what a worker elsewhere has: vllm==0.26.0; repeatable",
    )
    add(
        "--skip-version-check",
        action="store_true",
        help="the worker runs somewhere else, nobody knows with what",
    )


def _add_sidecar(add: Callable[..., Any]) -> None:
    server = CacheServer()
    modes, seconds = get_args(TransferMode), "seconds (default %(default)g)"
    add("--host", default=server.host, help="or ipc:///PATH (default %(default)s)")
    add("--port", type=port, default=server.port, metavar="N", help="default %(default)s")
    add("--server-url", action="append", default=[], metavar="URL", help="of several; repeatable")
    add(
        "--transfer-mode",
        choices=modes,
        default=server.transfer_mode,
        metavar="MODE",
        help=f"{', '.join(modes)}; default %(default)s",
    )
    add("--timeout", type=float, default=server.timeout_seconds, metavar="S", help=seconds)
    add("--heartbeat", type=float, default=server.heartbeat_seconds, metavar="S", help=seconds)
    add("--lmcache-config", metavar="F", default="", help="LMCacheConnectorV1 with it instead")


def _add_transfer(add: Callable[..., Any]) -> None:
    add(
        "--buffer-device",
        choices=get_args(BufferDevice),
        metavar="D",
        help=f"{', '.join(get_args(BufferDevice))}; default the worker's",
    )
    add("--nixl-backend", action="append", default=[], metavar="B", help="default UCX; repeatable")


def _add_worker_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("worker").add_argument
    add("--model", required=True, help="name or directory")
    add("--program", choices=get_args(Program), default="dynamo", help="default %(default)s")
    add("--python", default="python3", help="the interpreter that has Dynamo")
    add("--system-port", type=port, metavar="N", help="Dynamo's health port")
    add(
        hazards.SALTED,
        action="store_true",
        help="requests for LoRA adapters, or with prompt embeddings, carry a cache_salt each",
    )
    add("--side-channel-host", default="127.0.0.1", metavar="H", help="as its peers see it")
    add("--side-channel-port", type=port, metavar="N", help="of NIXL's handshake")
    add(
        "--kv-events-port", type=port, metavar="N", help="publish what the worker holds; default no"
    )
    add("--ucx-tls", default="", metavar="LIST", help="UCX_TLS")
    add("--ucx-net-devices", default="", metavar="L", help="UCX_NET_DEVICES")
    add(
        "--no-prefix-caching",
        dest="prefix_caching",
        action="store_false",
        help="for measurements: all hits are the sidecar's",
    )
