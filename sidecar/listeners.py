"""Listening TCP sockets, bound before anything depends on them."""

import errno
import os
import socket

from sidecar.addresses import EVERYWHERE, in_url

# What the resolver lists and the machine does not have, such as ::1 without IPv6.
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listen(host: str, port: int, backlog: int = 128) -> list[socket.socket]:
    """One listening socket for each address of ``host``; port 0 takes a free one of the first.

    ``*`` is one socket for all addresses, IPv4 and IPv6, and so is ``::``; on a machine without
    IPv6 ``*`` is all that there are.

    Raises:
        OSError: a port is in use or the host unknown; the text names both.
    """
    sockets: list[socket.socket] = []
    problem: OSError | None = None
    try:
        for family, address in _addresses(host, port):
            try:
                sockets.append(_bound(family, address, backlog))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                problem = error
            if sockets and (port == 0 or host == EVERYWHERE):
                break
        if not sockets and problem:
            raise problem
    except OSError as error:
        close(sockets)
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise OSError(f"cannot listen on {in_url(host)}:{port}: {reason}") from error
    return sockets


def _bound(family: int, address: tuple[object, ...], backlog: int) -> socket.socket:
    """Where it is all of IPv6, it is all of IPv4, too."""
    both = family == socket.AF_INET6 and address[0] == "::"
    return socket.create_server(address, family=family, backlog=backlog, dualstack_ipv6=both)


def _addresses(host: str, port: int) -> list[tuple[int, tuple[object, ...]]]:
    if host == EVERYWHERE:
        return [(socket.AF_INET6, ("::", port)), (socket.AF_INET, ("0.0.0.0", port))]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(dict.fromkeys((family, place) for family, *_, place in found))


def close(sockets: list[socket.socket]) -> None:
    """Close all of them."""
    for each in sockets:
        each.close()
