"""No page of another site acts through a browser that runs on a machine which reaches the port."""

import ipaddress
import socket
from collections.abc import Mapping
from urllib.parse import urlsplit

_READING = ("GET", "HEAD", "OPTIONS")


def objection(
    method: str, headers: Mapping[str, str], reached: str, configured_host: str
) -> str | None:
    """Why a request is refused, None if it is not.

    A browser sends any site's POST without asking, with that site as its `Origin`. And a site
    whose name is made to mean 127.0.0.1 is of the same origin as we are, but its name stands in
    `Host`. So on the loopback address (`reached` is ours) only names of this machine count;
    elsewhere nobody knows the names under which a server is known.
    """
    host = headers.get("host", "")
    if host and _is_loopback(reached) and not _is_ours(host, configured_host):
        return f"the request is for {host!r}, which is no name of this server"
    origin = headers.get("origin")
    if origin is not None and method not in _READING and origin.partition("://")[2] != host:
        return f"a page of {origin!r} may not change anything here"
    return None


def _is_loopback(address: str) -> bool:
    # IPv4 through an IPv6 socket.
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


def _is_ours(host: str, configured_host: str) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return False
    if name in ("localhost", configured_host.lower(), socket.gethostname().lower()):
        return True
    return name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
