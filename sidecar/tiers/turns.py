"""A gate that lets a bounded number of flows through, fairly between clients."""

from collections import Counter, deque

from sidecar.flow import Cancelled, Outcome


class Turns:
    """Lets `most` flows through at once, and one of each client at any time.

    Next is the oldest of the client that has fewest under way. A client that has none need not
    wait for others, however many they have.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: Counter[bytes] = Counter()  # of each client
        self._waiting: deque[tuple[bytes, Outcome[None]]] = deque()

    async def take(self, client: bytes) -> None:
        """Wait for a turn, to be ended by `end`."""
        turn: Outcome[None] = Outcome()
        self._waiting.append((client, turn))
        self._begin_next()
        try:
            await turn
        except Cancelled:
            if turn.done:
                self.end(client)
            else:
                self._waiting.remove((client, turn))
            raise

    def end(self, client: bytes) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._begin_next()

    def _begin_next(self) -> None:
        while self._waiting:
            client, turn = min(self._waiting, key=lambda waiting: self._running[waiting[0]])
            if self._running[client] and self._running.total() >= self._most:
                return
            self._waiting.remove((client, turn))
            self._running[client] += 1
            turn.set(None)
