"""`kv-sidecar lmcache-config`: the file for workers that keep to LMCacheConnectorV1."""

import argparse
from typing import Any

from connectors import lmcache_v1
from connectors.option_types import gib, port


def add(commands: Any) -> None:
    """Add the command to argparse's `add_subparsers()`."""
    parser = commands.add_parser(
        "lmcache-config",
        help="print a configuration file for LMCacheConnectorV1",
        description="The file for --lmcache-config and LMCACHE_CONFIG_FILE. No sidecar is used.",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for add_kind in (_add_in_process, _add_shared, _add_producer, _add_consumer):
        add_kind(kinds)


def _add_in_process(kinds: Any) -> None:
    parser = kinds.add_parser("in-process", help="a cache in each worker")
    _add_memory(parser)
    parser.add_argument("--disk", default="", metavar="DIR", help="what the memory evicts")
    parser.add_argument(
        "--disk-gb", type=gib, default=0.0, metavar="GIB", help="needed with --disk"
    )
    parser.set_defaults(run=_in_process)


def _add_shared(kinds: Any) -> None:
    parser = kinds.add_parser("shared", help="in-process, in front of a server")
    parser.add_argument("url", metavar="URL", help="as LMCache takes it: redis://HOST:PORT")
    _add_memory(parser)
    parser.set_defaults(run=_shared)


def _add_producer(kinds: Any) -> None:
    parser = kinds.add_parser("producer", help="prefill of LMCache's own transfer")
    parser.add_argument("--proxy-host", required=True, metavar="HOST", help="LMCache's proxy")
    parser.add_argument("--proxy-port", required=True, type=port, metavar="PORT")
    _add_transfer(parser)
    parser.set_defaults(run=_producer)


def _add_consumer(kinds: Any) -> None:
    parser = kinds.add_parser("consumer", help="decode of LMCache's own transfer")
    add = parser.add_argument
    add("--host", required=True, help="this worker as prefill workers see it")
    add("--init-port", required=True, type=port, action="append", metavar="PORT", help="per rank")
    add("--alloc-port", required=True, type=port, action="append", metavar="PORT", help="per rank")
    _add_transfer(parser)
    parser.set_defaults(run=_consumer)


def _add_memory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cpu-gb", type=gib, default=5.0, metavar="GIB", help="of each rank (default %(default)g)"
    )


def _add_transfer(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--buffer-gb", required=True, type=gib, metavar="GIB", help="for KV on its way")
    add("--buffer-device", choices=("cuda", "cpu"), default="cuda", help="default %(default)s")
    add("--nixl-backend", action="append", metavar="NAME", help="default UCX; may be repeated")


def _in_process(given: argparse.Namespace) -> int:
    return _print(
        lmcache_v1.in_process(cpu_gb=given.cpu_gb, disk=given.disk, disk_gb=given.disk_gb)
    )


def _shared(given: argparse.Namespace) -> int:
    return _print(lmcache_v1.shared(given.url, cpu_gb=given.cpu_gb))


def _producer(given: argparse.Namespace) -> int:
    return _print(
        lmcache_v1.producer(
            proxy_host=given.proxy_host, proxy_port=given.proxy_port, **_transfer(given)
        )
    )


def _consumer(given: argparse.Namespace) -> int:
    return _print(
        lmcache_v1.consumer(
            host=given.host,
            init_ports=given.init_port,
            alloc_ports=given.alloc_port,
            **_transfer(given),
        )
    )


def _transfer(given: argparse.Namespace) -> dict[str, Any]:
    return {
        "buffer_bytes": int(given.buffer_gb * 2**30),
        "buffer_device": given.buffer_device,
        "nixl_backends": given.nixl_backend or ["UCX"],
    }


def _print(settings: lmcache_v1.Settings) -> int:
    print(lmcache_v1.config_file(settings), end="")
    return 0
