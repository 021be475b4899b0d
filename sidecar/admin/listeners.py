"""Listening sockets, bound before anything depends on them."""

import errno
import os
import socket

# What the resolver lists and the machine does not have, such as ::1 without IPv6.
_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def listen(host: str, port: int) -> list[socket.socket]:
    """One listening socket for each address of ``host``; port 0 takes a free one of the first.

    Raises:
        OSError: a port is in use or the host unknown; the text names both.
    """
    sockets: list[socket.socket] = []
    problem: OSError | None = None
    try:
        for family, address in _addresses(host, port):
            try:
                sockets.append(socket.create_server(address, family=family, backlog=128))
            except OSError as error:
                if error.errno not in _ABSENT:
                    raise
                problem = error
            if sockets and port == 0:
                break
        if not sockets and problem:
            raise problem
    except OSError as error:
        close(sockets)
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise OSError(f"cannot listen on {host}:{port}: {reason}") from error
    return sockets


def _addresses(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return list(
        dict.fromkeys((family, (str(place[0]), int(place[1]))) for family, *_, place in found)
    )


def close(sockets: list[socket.socket]) -> None:
    """Close all of them."""
    for each in sockets:
        each.close()
