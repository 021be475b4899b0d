"""Network namespaces: what has a loopback interface and ports of its own, as a machine has."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import ip_network

from bench.routing.nodes import Place

# For tests of networks (RFC 2544): nobody's addresses.
_NETWORKS = [*ip_network("198.18.0.0/15").subnets(new_prefix=30)]


def obstacle() -> str:
    """Why none can be made here; empty where they can."""
    try:
        with places(1):
            return ""
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no network namespaces: {error}"


@contextmanager
def places(count: int) -> Iterator[list[Place]]:
    """As many, each with a link to this machine and a route over it."""
    with ExitStack() as stack:
        yield [stack.enter_context(_namespace(index)) for index in range(count)]


@contextmanager
def _namespace(index: int) -> Iterator[Place]:
    name = f"kv{os.getpid()}-{index}"
    network = _NETWORKS[(2 * os.getpid() + index) % len(_NETWORKS)]
    here, there = network.hosts()
    _ip("netns", "add", name)
    try:
        _ip("link", "add", name, "type", "veth", "peer", "name", "node", "netns", name)
        _ip("addr", "add", f"{here}/30", "dev", name)
        _ip("link", "set", name, "up")
        for words in (
            ("addr", "add", f"{there}/30", "dev", "node"),
            ("link", "set", "node", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", str(here)),
        ):
            _ip("-n", name, *words)
        yield Place(str(there), ("ip", "netns", "exec", name), str(here))
    finally:
        _ip("netns", "del", name)  # with both ends of its link


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)
