"""The options of `kv-sidecar connector` and `kv-sidecar worker-args`."""

import argparse
from collections.abc import Callable
from typing import Any, get_args

from connectors import hazards
from connectors.lmcache_mp import CacheServer, TransferMode
from connectors.nixl import BufferDevice
from connectors.offloading import NativeServer
from connectors.option_types import package_version, port
from connectors.roles import Client, Handoff, Role
from connectors.worker import Program


def add_connector_options(parser: argparse.ArgumentParser) -> None:
    _add_role(parser.add_argument)
    _add_versions(parser.add_mutually_exclusive_group().add_argument)
    _add_transfer(parser.add_argument)
    # Each within a line: with a group or a blank line more the help does not fit a screen.
    sidecar = parser.add_argument_group("sidecar; native: vLLM's own OffloadingConnector")
    _add_sidecar(sidecar.add_argument)
    _add_native(sidecar.add_argument)


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
        help="a version in the worker: vllm==0.26.0; repeatable",
    )
    add(
        "--skip-version-check",
        action="store_true",
        help="the worker's versions are unknown",
    )


def _add_sidecar(add: Callable[..., Any]) -> None:
    server = CacheServer()
    modes = get_args(TransferMode)
    add(
        "--client",
        choices=get_args(Client),
        default="lmcache",
        metavar="CLIENT",
        help="lmcache (default), or native",
    )
    add("--host", default=server.host, help="its address, or ipc:///PATH (default %(default)s)")
    add(
        "--port", type=port, default=server.port, metavar="N", help="its port (default %(default)s)"
    )
    add(
        "--server-url",
        action="append",
        default=[],
        metavar="URL",
        help="one of several sidecars; repeatable",
    )
    add(
        "--transfer-mode",
        choices=modes,
        default=server.transfer_mode,
        metavar="MODE",
        help=f"{', '.join(modes)}; default %(default)s",
    )
    help = "seconds for an answer (default %(default)g)"
    add("--timeout", type=float, default=server.timeout_seconds, metavar="S", help=help)
    help = "seconds between heartbeats (default %(default)g)"
    add("--heartbeat", type=float, default=server.heartbeat_seconds, metavar="S", help=help)
    add(
        "--lmcache-config",
        metavar="F",
        default="",
        help="LMCacheConnectorV1 with this file instead",
    )


def _add_native(add: Callable[..., Any]) -> None:
    server, default = NativeServer(), "default %(default)d"
    help = f"native: how long a lookup may take; {default}"
    add("--lookup-budget", type=int, default=server.budget_ms, metavar="MS", help=help)
    help = f"native: vLLM's blocks in an object; {default}"
    add("--blocks-per-chunk", type=int, default=server.blocks_per_chunk, metavar="N", help=help)


def _add_transfer(add: Callable[..., Any]) -> None:
    add(
        "--buffer-device",
        choices=get_args(BufferDevice),
        metavar="D",
        help=f"of NIXL: {', '.join(get_args(BufferDevice))}; default the worker's",
    )
    add(
        "--nixl-backend",
        action="append",
        default=[],
        metavar="B",
        help="NIXL's; default UCX; repeatable",
    )


def add_worker_options(parser: argparse.ArgumentParser) -> None:
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
    add("--side-channel-host", default="127.0.0.1", metavar="H", help="for NIXL's peers")
    add("--side-channel-port", type=port, metavar="N", help="of NIXL's handshake")
    add("--kv-events-port", type=port, metavar="N", help="publish KV events on this port")
    add("--kv-events-topic", default="", metavar="T", help="theirs; llm-d: kv@POD@MODEL")
    add("--ucx-tls", default="", metavar="LIST", help="UCX_TLS")
    add("--ucx-net-devices", default="", metavar="L", help="UCX_NET_DEVICES")
    add(
        "--no-prefix-caching",
        dest="prefix_caching",
        action="store_false",
        help="for measurements: all hits are the sidecar's",
    )
