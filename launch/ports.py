"""TCP ports: the ones that the user names are checked, the others picked."""

import random
import socket

from launch.errors import StackError, UsageError

# Below the range from which Linux takes the ports of outgoing connections (from 32768): one of
# those could take a picked port before its program listens.
_FIRST, _LAST = 20000, 32000


class Ports:
    """Hands out ports that are free now, none twice."""

    def __init__(self) -> None:
        self._taken: set[int] = set()
        self._random = random.Random()

    def take(self, wanted: int, flag: str) -> int:
        """`wanted`, or a free one for 0. Raises StackError where `wanted` is in use."""
        if wanted == 0:
            return self.block(1)
        if wanted > 65535:
            raise UsageError(f"{flag}: there is no port {wanted} for the last worker")
        if wanted in self._taken or not _is_free(wanted):
            raise StackError(f"port {wanted} is in use: give another one with {flag}, or 0")
        self._taken.add(wanted)
        return wanted

    def block(self, count: int) -> int:
        """The first of `count` free ports in a row."""
        for _ in range(1000):
            first = self._random.randrange(_FIRST, _LAST - count)
            ports = range(first, first + count)
            if self._taken.isdisjoint(ports) and all(map(_is_free, ports)):
                self._taken.update(ports)
                return first
        raise StackError(f"no {count} free ports between {_FIRST} and {_LAST}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: what only lingers in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
