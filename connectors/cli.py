"""`kv-sidecar connector` and `kv-sidecar worker-args`: what their options mean, what they print."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any, Literal

from connectors import hazards, lmcache_v1, pairs, roles, versions
from connectors.arguments import compact
from connectors.cli_options import add_connector_options, add_worker_options
from connectors.errors import ConnectorError
from connectors.lmcache_mp import CacheServer
from connectors.nixl import Nixl
from connectors.offloading import NativeServer
from connectors.roles import Client, Role, Server
from connectors.worker import DEFAULT_PORTS, Ports, Worker, command, needs

COMMANDS = ("connector", "worker-args")

_V1_ROLES: dict[Role, Literal["kv_both", "kv_producer", "kv_consumer"]] = {
    "aggregated": "kv_both",
    "prefill": "kv_producer",
    "decode": "kv_consumer",
}
# The options that one client has, and their defaults.
_OPTIONS_OF: dict[Client, dict[str, object]] = {
    "lmcache": {
        "server_url": [],
        "transfer_mode": CacheServer.transfer_mode,
        "timeout": CacheServer.timeout_seconds,
        "heartbeat": CacheServer.heartbeat_seconds,
        "lmcache_config": "",
    },
    "native": {
        "lookup_budget": NativeServer.budget_ms,
        "blocks_per_chunk": NativeServer.blocks_per_chunk,
    },
}


def add_commands(commands: Any) -> None:
    """Add both commands to argparse's `add_subparsers()`."""
    connector = commands.add_parser(
        "connector",
        help="print a role's --kv-transfer-config",
        usage="%(prog)s --role ROLE [OPTION...]",
        epilog="`kv-sidecar doctor -- COMMAND` also looks at options like --enable-lora.",
    )
    worker = commands.add_parser(
        "worker-args",
        help="print the command line of a worker",
        usage="%(prog)s --role ROLE --model MODEL [OPTION...] [-- ...]",
        epilog="Arguments after -- go to the worker and win over those of the role; "
        "`kv-sidecar doctor -- LINE` checks the whole command.",
    )
    for parser in (connector, worker):
        add_connector_options(parser)
    add_worker_options(worker)


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
    _refuse_options_of_the_other(given)
    if given.client == "lmcache" and given.lmcache_config and given.role in _V1_ROLES:
        return lmcache_v1.kv_transfer_config(_V1_ROLES[given.role])
    server = _native(given) if given.client == "native" else _lmcache(given, client)
    return roles.kv_transfer_config(given.role, server, transfer, given.handoff)


def _refuse_options_of_the_other(given: argparse.Namespace) -> None:
    for client, defaults in _OPTIONS_OF.items():
        for option, default in defaults.items():
            if client != given.client and getattr(given, option) != default:
                raise ConnectorError(f"--{option.replace('_', '-')} is for --client {client}")


def _native(given: argparse.Namespace) -> Server:
    return NativeServer(
        host=given.host,
        port=given.port,
        budget_ms=given.lookup_budget,
        blocks_per_chunk=given.blocks_per_chunk,
    )


def _lmcache(given: argparse.Namespace, client: str) -> Server:
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
    return server


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
        kv_events_topic=given.kv_events_topic,
    )
