"""All events of the node over a socket, in vLLM's format: for routers that watch nodes."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby

from sidecar.handlers.core import Core
from sidecar.handlers.kv_events.history import Event, History
from sidecar.handlers.kv_events.subscriptions import token_ids
from sidecar.wire.publisher import BlockEvent, BlockRemoved, BlockStored, Publisher

_EVENTS_A_BATCH = 64  # some 80 KiB with chunks of 256 tokens
_FULL_SECONDS = 0.01


class Publication:
    """From its begin to the server's end. Loop thread only."""

    def __init__(self, core: Core, history: History, publisher: Publisher, pod: str) -> None:
        """The topic of a model's events is kv@POD@MODEL."""
        self._core = core
        self._history = history
        self._publisher = publisher
        self._pod = pod
        history.begin()
        core.flows.start(self._follow())

    async def _follow(self) -> None:
        cursor = self._history.last
        while True:
            page = self._history.since(cursor, _EVENTS_A_BATCH)
            cursor = page.cursor
            if page.lost:
                self._publisher.skip()
                self._core.telemetry.kv_events_lost.add(1, "socket")
            for model, events in groupby(page.events, lambda event: event.model_name):
                await self._publish(model, list(events))
            if page.events:
                await self._core.flows.sleep(0)
            else:
                await self._history.news.next()

    async def _publish(self, model: str, events: Sequence[Event]) -> None:
        """What does not fit waits in the history."""
        make = partial(_as_vllm, events, self._core.config.chunk_size)
        while not self._publisher.publish(f"kv@{self._pod}@{model}", make):
            await self._core.flows.sleep(_FULL_SECONDS)
        self._core.telemetry.kv_events_sent.add(len(events), "socket")


def _as_vllm(events: Sequence[Event], chunk_size: int) -> list[BlockEvent]:
    return [
        BlockRemoved(event.hashes, event.medium)
        if event.chunk is None
        else BlockStored(
            block_hashes=event.hashes,
            parent_block_hash=event.chunk.parent,
            token_ids=token_ids(event.chunk.tokens),
            block_size=chunk_size,
            lora_id=None,
            medium=event.medium,
            lora_name=None,
        )
        for event in events
    ]
