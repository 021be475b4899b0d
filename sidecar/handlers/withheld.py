"""Answers that would do harm, kept back until their client is ready for them.

Clients up to 0.5.4 log a failed retrieve and then use the blocks, which nothing has filled: wrong
tokens. On a GPU they also end their engine over an answer without an event. But a client that is
told False by a ping gives up all requests under way, and reports the blocks of its retrieves as
failed, so that vLLM computes them. So these clients are told False first, and "no" then.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from sidecar.wire.endpoint import Request

# What a client needs to take notice of a False: its threads are to run once.
_NOTICED_SECONDS = 1.0
# How long it is told so: it gives up what is under way in its engine's next step, and a step can
# take long. A client pings every ten seconds.
_UNWELL_SECONDS = 30.0
_MAX_REQUESTS = 1024  # of one client; no stock client has more under way


@dataclass(eq=False, slots=True)
class _Unwell:
    """A client that must be told False. `until` is set by its first ping, on the cache's clock.

    `models` are those of its workers.
    """

    models: set[str] = field(default_factory=set)
    requests: list[tuple[Request, str]] = field(default_factory=list)
    until: float | None = None


class Withheld:
    """Requests whose refusal waits for their client's ping. Loop thread only."""

    def __init__(
        self,
        now: Callable[[], float],
        later: Callable[[float, Callable[[], None]], None],
        forget_workers: Callable[[bytes], set[str]],
    ) -> None:
        """`forget_workers(client)` drops the client's workers and returns their models' names."""
        self._now = now
        self._later = later
        self._forget_workers = forget_workers
        self._clients: dict[bytes, _Unwell] = {}

    def hold(self, request: Request, reason: str) -> None:
        """Refuse this when its client has been told False."""
        client = request.client
        unwell = self._clients.setdefault(client, _Unwell())
        if not request.is_connected() or len(unwell.requests) >= _MAX_REQUESTS:
            request.send_negative(reason)
            return
        unwell.requests.append((request, reason))
        unwell.models |= self._forget_workers(client)
        if unwell.until is not None:
            self._later(_NOTICED_SECONDS, lambda: self._answer(unwell))

    def must_hear_no(self, client: bytes) -> bool:
        """Whether the ping that has come from this client is answered False."""
        unwell = self._clients.get(client)
        if unwell is None:
            return False
        if unwell.until is None:
            unwell.until = self._now() + _UNWELL_SECONDS
            self._later(_NOTICED_SECONDS, lambda: self._answer(unwell))
        return bool(unwell.requests) or self._now() < unwell.until

    def silences(self, model_name: str) -> bool:
        """Whether a lookup finds nothing: a worker of the model does not load what it is given.

        Up to 0.4.7 a worker that thinks the server unhealthy drops a load without a word, and its
        request waits for ever.
        """
        return any(model_name in unwell.models for unwell in self._clients.values())

    def tick(self, is_connected: Callable[[bytes], bool], speaks: Callable[[bytes], bool]) -> None:
        """Forget the clients that are gone, or are well and have registered again (`speaks`)."""
        for client, unwell in list(self._clients.items()):
            is_over = unwell.until is not None and self._now() >= unwell.until
            if not is_connected(client) or (is_over and speaks(client)):
                self._answer(unwell)
                del self._clients[client]

    def _answer(self, unwell: _Unwell) -> None:
        requests, unwell.requests = unwell.requests, []
        for request, reason in requests:
            request.send_negative(reason)
