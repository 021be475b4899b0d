"""subscribe_kv_events: the stream that a stock worker of lmcache 0.5.6 publishes as its own events.

The worker takes what is told for the state of the whole L1, so a subscription begins with all that
is there, as far as it is known, and begins anew for a reader that was too slow.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sidecar.cache.changes import Medium
from sidecar.flow import first
from sidecar.handlers.core import Core
from sidecar.handlers.kv_events.history import Event, History
from sidecar.wire.endpoint import Request
from sidecar.wire.messages import KvEvent, KvEventBatch
from sidecar.wire.streams import Stream

CAPABILITY = "kv_event_stream"
_MOST = 64


class Subscriptions:
    """Of all workers. Loop thread only."""

    def __init__(self, core: Core, history: History) -> None:
        self._core = core
        self._history = history
        self._streams: dict[tuple[bytes, int], Stream] = {}

    def __len__(self) -> int:
        return len(self._streams)

    def status(self) -> dict[str, Any]:
        """What `/status` tells of them, in the shape of lmcache 0.5.6."""
        history = self._history
        return {
            "enabled": bool(history.size),
            "incarnation": history.incarnation,
            "log_depth": len(history),
            "log_capacity": history.size,
            "next_seq": history.last + 1,
            "lost_markers": history.losses,
            "unbound_stores": history.unknown,
            "subscribers": len(self),
        }

    async def subscribe(
        self, request: Request, instance_id: int, model_name: str, cursor: int, most: int
    ) -> None:
        """Until the client ends it; a worker has one subscription, the latest."""
        stream, name = request.stream(), (request.client, instance_id)
        is_full = len(self._streams) >= _MOST and name not in self._streams
        if is_full or not self._history.size:
            stream.send(self._batch([], 0, False, enabled=False))
            return
        self._history.begin()
        before, self._streams[name] = self._streams.get(name), stream
        if before is not None:
            before.end()
        try:
            await self._tell(stream, model_name, cursor, most)
        finally:
            if self._streams.get(name) is stream:
                del self._streams[name]

    async def _tell(self, stream: Stream, model_name: str, cursor: int, most: int) -> None:
        """One batch at once, if it is empty; more whenever there is something."""
        history, told = self._history, False
        while await stream.credit():
            page = history.since(cursor, most)
            events = [e for e in page.events if _concerns(e, model_name)]
            if page.lost:
                lost, cursor = told or cursor > 0, history.last
                self._core.telemetry.kv_events_lost.add(int(lost), "stream")
                if not await self._tell_all(stream, model_name, most, lost):
                    return
                told = True
                continue
            cursor = page.cursor
            if events or not told:
                stream.send(self._batch(events, cursor, False))
                told = True
            if page.events:
                await self._core.flows.sleep(0)
            else:
                await first(history.news.next(), stream.ended)

    async def _tell_all(self, stream: Stream, model_name: str, most: int, lost: bool) -> bool:
        """What is there now; whether the stream goes on."""
        seq, place = self._history.last, (model_name, Medium.CPU)
        names = list(self._core.chunks.told(place))
        for at in range(0, max(1, len(names)), most):
            if not await stream.credit():
                return False
            chunks = ((n, self._core.chunks.get(n)) for n in names[at : at + most])
            events = [
                Event(seq, model_name, Medium.CPU, [name], chunk)
                for name, chunk in chunks
                if chunk is not None and place in chunk.told
            ]
            # Who stops in between has to be told all again.
            cursor = seq if at + most >= len(names) else 0
            stream.send(self._batch(events, cursor, lost and not at))
            await self._core.flows.sleep(0)
        return True

    def _batch(
        self, events: Sequence[Event], cursor: int, lost: bool, enabled: bool = True
    ) -> KvEventBatch:
        self._core.telemetry.kv_events_sent.add(len(events), "stream")
        return KvEventBatch(
            enabled=enabled,
            incarnation=self._history.incarnation,
            next_cursor=cursor,
            lost=lost,
            events=[_event(event) for event in events],
        )


def _concerns(event: Event, model_name: str) -> bool:
    # Of other media the client publishes nothing.
    return event.model_name == model_name and event.medium is Medium.CPU


def _event(event: Event) -> KvEvent:
    chunk = event.chunk
    return KvEvent(
        seq=event.seq,
        kind="stored" if chunk is not None else "removed",
        medium=event.medium,
        model_name=event.model_name,
        block_hashes=event.hashes,
        parent_block_hash=chunk.parent if chunk is not None else None,
        token_ids=token_ids(chunk.tokens) if chunk is not None else [],
    )


def token_ids(tokens: bytes) -> list[int]:
    """From big-endian u32."""
    found: list[int] = np.frombuffer(tokens, ">u4").tolist()
    return found
