"""The small operations: handshake, heartbeat, clear, and what is only acknowledged."""

import msgspec

from sidecar.handlers.core import Core
from sidecar.wire.endpoint import Request


class Control:
    """get_chunk_size, get_experimental, ping, noop, clear, report_block_allocation."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def get_chunk_size(self, request: Request) -> int:
        return self._core.config.chunk_size

    def get_experimental(self, request: Request) -> list[str]:
        """No experimental feature: a client that sees none of its own uses none."""
        return []

    def ping(self, request: Request, instance_id: int | None = None) -> bool:
        """True = healthy. A worker that we have forgotten is made to register again."""
        if instance_id is None:
            return True
        instance = self._core.registry.hear(instance_id, request.client, self._core.now())
        if instance is not None:
            instance.proven = True
        return self._core.registry.ping_answer(instance_id)

    def noop(self, request: Request) -> str:
        return "OK"

    def clear(self, request: Request, force: bool = False) -> None:
        self._core.l1.clear(force)

    def report_block_allocation(
        self, request: Request, instance_id: int, model_name: str, records: msgspec.Raw
    ) -> None:
        """Statistics of the engine's own blocks, which we do not keep."""
