"""The small operations: handshake, heartbeat, clear, and what is only acknowledged."""

from collections import OrderedDict
from collections.abc import Sequence

import msgspec

from sidecar.handlers.core import Core
from sidecar.handlers.kv_events.subscriptions import CAPABILITY
from sidecar.handlers.withheld import Withheld
from sidecar.tiers.clearing import Cleared
from sidecar.wire.endpoint import DEFERRED, Refused, Request

_CONNECTIONS_REMEMBERED = 10_000


class Control:
    """get_chunk_size, get_experimental, ping, noop, clear, report_block_allocation."""

    def __init__(self, core: Core, withheld: Withheld) -> None:
        self._core = core
        self._withheld = withheld
        self._greeted: OrderedDict[bytes, None] = OrderedDict()

    def get_chunk_size(self, request: Request) -> int:
        """The first request of every adapter, so also its greeting."""
        self._greet(request.client)
        return self._core.config.chunk_size

    def get_experimental(self, request: Request) -> list[str]:
        """Of the features that a client may use, those that are served: it uses no others."""
        return [CAPABILITY] if self._core.config.kv_event_log_size else []

    def ping(self, request: Request, instance_id: int | None = None) -> bool:
        """True = healthy. Who lost its connection, or is forgotten, is told False once.

        A scheduler's lookups that were under way when the connection broke get no answer any
        more; seeing us unhealthy it gives them up at once instead of at its own timeout. A
        worker that we have forgotten registers again when it sees us healthy after that.
        """
        if self._withheld.must_hear_no(request.client):
            return False
        if instance_id is None and not request.generation.names_worker_in_ping:
            instance_id = self._core.registry.worker_of(request.client)
        if instance_id is None:
            return self._greet(request.client)
        try:
            instance = self._core.speaker(request, instance_id)
        except Refused as refusal:
            # It keeps nothing alive; on False a second worker would register again, in vain.
            self._core.refusals.add(request.operation.name, refusal.reason, str(refusal))
            return True
        if instance is not None:
            instance.proven = True
        return self._core.registry.ping_answer(instance_id, request.client)

    def _greet(self, client: bytes) -> bool:
        """Remember a connection; whether it was known."""
        known = client in self._greeted
        self._greeted[client] = None
        if len(self._greeted) > _CONNECTIONS_REMEMBERED:
            self._greeted.popitem(last=False)
        return known

    def noop(self, request: Request) -> str:
        return "OK"

    def clear(self, request: Request, force: bool = False) -> object:
        """An engine says that what is cached means nothing any more (new weights, say).

        So it must not come back from L2 either, by way of another sidecar or after a restart.
        """

        def answer(cleared: Sequence[Cleared]) -> None:
            request.reply(None)

        self._core.l1.clear(force)
        self._core.tiers.clear(answer)
        return DEFERRED

    def report_block_allocation(
        self, request: Request, instance_id: int, model_name: str, records: msgspec.Raw
    ) -> None:
        """Statistics of the engine's own blocks, which we do not keep."""
