"""No page of another site acts through a browser that runs on a machine which reaches the port."""

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Mapping
from urllib.parse import urlsplit

_READING = ("GET", "HEAD", "OPTIONS")


class Names:
    """The names of a server that is configured to listen on ``host``, ports left out."""

    def __init__(self, host: str) -> None:
        self._known = {"localhost", host.lower(), socket.gethostname().lower()}
        # A resolver may take its time: until it has answered there is one name less.
        threading.Thread(target=self._add_full_name, name="full-name", daemon=True).start()

    def __contains__(self, name: str) -> bool:
        name = name.lower().rstrip(".")
        return name in self._known or name.endswith(".localhost") or _is_address(name)

    def _add_full_name(self) -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found = socket.getaddrinfo(socket.gethostname(), None, flags=socket.AI_CANONNAME)
            self._known |= {name.lower().rstrip(".") for *_, name, _ in found if name}


def objection(method: str, headers: Mapping[str, str], reached: str, names: Names) -> str | None:
    """Why a request is refused, None if it is not.

    A browser sends any site's POST without asking, with that site as its `Origin`. And a site
    whose name is made to mean 127.0.0.1 is of the same origin as we are, but its name stands in
    `Host`. So on the loopback address (`reached` is ours) only names of this machine count;
    elsewhere nobody knows the names under which a server is known.
    """
    host = headers.get("host", "")
    if host and _is_loopback(reached) and _name(host) not in names:
        return f"the request is for {host!r}, which is no name of this server"
    origin = headers.get("origin")
    if origin is not None and method not in _READING and origin.partition("://")[2] != host:
        return f"a page of {origin!r} may not change anything here"
    return None


def _is_loopback(address: str) -> bool:
    # IPv4 through an IPv6 socket.
    return ipaddress.ip_address(address.removeprefix("::ffff:")).is_loopback


def _name(host: str) -> str:
    """A `Host` without its port; empty if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
