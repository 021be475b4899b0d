"""A gate that lets a bounded number of flows through, fairly between clients."""

import itertools
from collections import Counter

from sidecar.flow import Cancelled, Outcome


class Turns:
    """Lets `most` flows through at once, and one of each client at any time.

    Next is the oldest of the client that has fewest under way. A client that has none need not
    wait for others, however many they have.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: Counter[bytes] = Counter()  # of each client
        # Of each client that waits, and when they came; a client may have very many.
        self._waiting: dict[bytes, dict[Outcome[None], int]] = {}
        self._numbers = itertools.count()

    async def take(self, client: bytes) -> None:
        """Wait for a turn, to be ended by `end`."""
        turn: Outcome[None] = Outcome()
        self._waiting.setdefault(client, {})[turn] = next(self._numbers)
        self._begin_next()
        try:
            await turn
        except Cancelled:
            if turn.done:
                self.end(client)
            else:
                self._leave(client, turn)
            raise

    def end(self, client: bytes) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._begin_next()

    def _begin_next(self) -> None:
        while self._waiting:
            client = min(self._waiting, key=self._standing)
            if self._running[client] and self._running.total() >= self._most:
                return
            turn = next(iter(self._waiting[client]))
            self._leave(client, turn)
            self._running[client] += 1
            turn.set(None)

    def _standing(self, client: bytes) -> tuple[int, int]:
        """Of one that waits: how many it has under way, and when its oldest came."""
        return self._running[client], next(iter(self._waiting[client].values()))

    def _leave(self, client: bytes, turn: Outcome[None]) -> None:
        waiting = self._waiting[client]
        del waiting[turn]
        if not waiting:
            del self._waiting[client]
