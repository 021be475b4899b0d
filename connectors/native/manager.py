"""The scheduler's side: what vLLM may load and where it stores, planned without ever waiting.

Every call answers from what is known. What is not known is asked for in the background of the
engine's steps and is a miss when it does not come in time. Whatever the sidecar does, no call
raises: a cache that is slow, gone or mad is a cache that misses.
"""

import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from vllm.v1.kv_offload.base import (
    LookupResult,
    OffloadingEvent,
    OffloadingManager,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
)

from connectors.native import wire
from connectors.native.allowance import Allowance
from connectors.native.announcements import Announcements
from connectors.native.connection import Connection
from connectors.native.loads import Loads
from connectors.native.lookups import Lookups
from connectors.native.session import Session
from connectors.native.stores import Stores
from connectors.native.transfer import ArenaSlots

# vLLM 0.33 and newer say when no worker copies any more for what a reset cut off. Before, the end
# of a job that was begun after the reset tells it: a worker does its loads in their order, and its
# stores.
RESET_END_IS_TOLD: Final = hasattr(OffloadingManager, "on_reset_flushed")

# A thousand requests may be looked up in one step: not each of them polls.
POLL_SECONDS: Final = 0.0005


class SidecarOffloadingManager(OffloadingManager):  # type: ignore[misc]
    """Plans for one engine with objects of `object_bytes`; lookups wait at most `budget` s."""

    def __init__(
        self,
        introduce: Callable[[], wire.Attach],
        connect: Callable[[], Connection],
        object_bytes: int,
        budget: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._session = Session(introduce, connect, self, clock)
        self._stores = Stores(self._session, object_bytes)
        self._loads = Loads(self._session, budget, self._stores.expect)
        self.announcements = Announcements(self._session, clock, self._stores.forget)
        # The request that is being looked up, and what is known for it. There is no poll within
        # its pass: what it was told holds until its load is prepared.
        self._pass = ""
        self._known: Lookups | None = None
        self._now = clock()

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        self._poll()
        self.announcements.moves()
        return RequestOffloadingContext()

    def lookup(self, key: bytes, req_context: ReqContext) -> LookupResult:
        request = req_context.req_id
        if request != self._pass:
            if self._clock() - self._now >= POLL_SECONDS:
                self._poll()
            self._pass, self._known = request, self._loads.open(request, self._now)
        if self._known is None:
            return LookupResult.RETRY if self._session.hopeful else LookupResult.MISS
        end = req_context.get_offload_key_position(key) or 0
        result = self._known.result(key, end, self._now)
        if result is LookupResult.HIT:
            self.announcements.found(key)
        return result

    def get_load_source(self, key: bytes, req_context: ReqContext) -> Any:
        """From where a hit came, as vLLM 0.32 and newer count it."""
        from vllm.v1.metrics.cache_hit_source import CacheHitSource

        below = self._loads.was_below(req_context.req_id, key)
        return CacheHitSource.DISK if below else CacheHitSource.HOST

    def prepare_load(self, keys: Collection[bytes], req_context: ReqContext) -> ArenaSlots:
        """Where hits of this step are."""
        self._pass = ""
        return ArenaSlots(self._loads.begin(req_context.req_id, keys), self._session.server)

    def complete_load(self, keys: Collection[bytes], req_context: ReqContext) -> None:
        if self._loads.complete(req_context.req_id) and not RESET_END_IS_TOLD:
            self._loads.reset_has_ended()

    def prepare_store(
        self, keys: Collection[bytes], req_context: ReqContext
    ) -> PrepareStoreOutput | None:
        """Slots for those of `keys` that are new; None: offer them again in the next step."""
        self._poll()
        request = req_context.req_id
        self._loads.decided(request)  # it runs
        begun = self._stores.begin(request, keys, req_context.get_offload_key_position, self._now)
        if begun is None:
            return None
        new, slots = begun
        self.announcements.stores(new)
        return PrepareStoreOutput(new, ArenaSlots(slots, self._session.server), [])

    def complete_store(
        self, keys: Collection[bytes], req_context: ReqContext, success: bool = True
    ) -> None:
        name = self._loads.name_of(req_context.req_id)
        known = self._stores.complete(name, keys, success, self._clock())
        if known and not RESET_END_IS_TOLD:
            self._stores.reset_has_ended()
        if known:
            self.announcements.published()

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """Send what this step gathered. In 0.31 and 0.32 stores are planned after this."""
        self._poll()
        for request in context.new_req_ids:
            self._loads.decided(request)
        self._loads.ask(self._now, Allowance(self._clock))
        self._stores.keep_pool(self._now)
        self.announcements.read(self._now)
        self._session.end_step()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._stores.finished(req_context.req_id)
        self._loads.decided(req_context.req_id)
        self.announcements.moves()

    def has_pending_work(self) -> bool:
        """Whether routers are still to be told. Asked before the first request, it connects."""
        if not self._session.begun:
            self._poll()
        return self.announcements.settles()

    def take_events(self) -> Iterable[OffloadingEvent]:
        """What vLLM is to describe; the connector makes KV events of that (`connector.py`)."""
        return self.announcements.questions()

    def reset_cache(self) -> None:
        self._loads.reset()
        self._stores.reset()
        self.announcements.reset()
        self._session.clear()

    def on_reset_flushed(self) -> None:
        self._loads.reset_has_ended()
        self._stores.reset_has_ended()

    def shutdown(self) -> None:
        self._session.close()

    def held(self) -> tuple[list[int], list[str]]:
        """What a session asks its owner."""
        return self._stores.held(), self._loads.held()

    def voided(self) -> None:
        """What a session tells its owner."""
        self._loads.voided()
        self._stores.voided()
        self.announcements.lost()

    def disconnected(self) -> None:
        """What a session tells its owner."""
        self._loads.disconnected()
        self._stores.disconnected()
        self.announcements.lost()

    def _poll(self) -> None:
        self._pass, self._known = "", None
        self._now = self._clock()
        self._session.poll()
