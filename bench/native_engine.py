"""An engine at the native door: the connector's own manager, and a member for its worker."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import zmq
from vllm.v1.kv_offload.base import ReqContext, ScheduleEndContext

from bench.common import LIMIT, BenchError
from connectors.native import wire
from connectors.native.arena import Arenas
from connectors.native.connection import Dealer
from connectors.native.manager import SidecarOffloadingManager
from connectors.native.membership import Membership

BUDGET = 10.0  # seconds of a lookup
NOTHING = ScheduleEndContext((), ())
_PAUSE_SECONDS = 0.001


@dataclass(frozen=True)
class Engine:
    """One rank, one group; chunks of `chunk_tokens`."""

    manager: SidecarOffloadingManager
    arenas: Arenas
    membership: Membership
    chunk_tokens: int

    def request(self, keys: list[Any]) -> ReqContext:
        """As vLLM makes it, before it asks us anything."""
        context = ReqContext(req_id=secrets.token_hex(8))
        for chunk, key in enumerate(keys, 1):
            context.set_offload_key_position(key, chunk * self.chunk_tokens)
        return context

    def until(self, condition: Callable[[], bool]) -> None:
        """Steps without requests."""
        end = time.monotonic() + LIMIT
        while not condition():
            self.manager.on_schedule_end(NOTHING)
            if time.monotonic() > end:
                raise BenchError("the native door does not serve its engine")
            time.sleep(_PAUSE_SECONDS)


@contextmanager
def running(url: str, chunk_tokens: int, object_bytes: int) -> Iterator[Engine]:
    """An engine that is served."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    common: dict[str, Any] = {
        "engine": secrets.token_hex(16), "incarnation": os.urandom(16), "ranks": 1,
        "object_bytes": object_bytes,
    }  # fmt: skip
    join = wire.Join(**common, rank=0, layout=bytes(32))
    attach = wire.Attach(
        **common, model="bench", groups=1, chunk_tokens=chunk_tokens, identity=os.urandom(32)
    )

    def connect() -> Dealer:
        return Dealer(context, url)

    arenas = Arenas()
    membership = Membership(join, arenas, connect)
    membership.start()
    manager = SidecarOffloadingManager(lambda: attach, connect, object_bytes, BUDGET)
    engine = Engine(manager, arenas, membership, chunk_tokens)
    try:
        engine.until(lambda: manager._session.usable)
        yield engine
    finally:
        manager.shutdown()
        membership.stop()
        context.term()
