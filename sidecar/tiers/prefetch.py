"""What a lookup finds in L2, brought into the L1 before the lookup is answered.

The answer is the prefix that has arrived: when all of it has, when something did not, or at the
deadline.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial

from sidecar.cache.entry import Entry, State
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases, Lookup
from sidecar.flow import Cancelled, Flow, Flows, Outcome, Reminder, first
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import NO_SPAN, Span
from sidecar.tiers.backend import Backend
from sidecar.tiers.loads import Loads
from sidecar.tiers.names import object_name
from sidecar.tiers.prefetch_plan import Planner, Prefetch, Want
from sidecar.tiers.turns import Turns

_COMPLETE = {State.READY, State.PROMISED}
_MAY_STILL_COME = {State.WRITING, *_COMPLETE}


class Prefetches:
    """All lookups that wait for L2, `max_in_flight` of them at once, and one of each client.

    Loop thread only.
    """

    def __init__(
        self, l1: L1, leases: Leases, loads: Loads, backends: Sequence[Backend],
        telemetry: Telemetry, later: Callable[[float, Callable[[], None]], None], flows: Flows,
        timeout: float, max_in_flight: int,
    ) -> None:  # fmt: skip
        self._l1, self._leases, self._loads, self._backends = l1, leases, loads, backends
        self._telemetry = telemetry
        self._later, self._flows = later, flows
        self._timeout = timeout
        self._planner = Planner(l1, leases, loads, backends, flows)
        self._turns = Turns(max_in_flight)
        self._under_way: dict[Lookup, Prefetch] = {}

    @property
    def active(self) -> int:
        """Lookups that wait for L2 now."""
        return len(self._under_way)

    def begin(
        self, lookup: Lookup, wants: list[list[Want]], hashes: Sequence[bytes],
        on_finished: Callable[[Prefetch, int], int], span: Span = NO_SPAN,
    ) -> None:  # fmt: skip
        """Extend a lookup that is `loading` by what L2 has; loading has ended when that ends.

        That may be at once. `on_finished(prefetch, hits)` returns how much of the prefix of
        `hits` chunks counts.
        """
        deadline = time.monotonic() + self._timeout
        from_l2 = [False] * lookup.hits
        prefetch = Prefetch(
            lookup, wants, hashes, on_finished, deadline, span, lookup.hits, from_l2
        )
        prefetch.at_deadline = Reminder(partial(self._give_up, prefetch))
        self._under_way[lookup] = prefetch
        self._telemetry.l2_prefetch_lookup_requests.add(1)
        missing = (len(hashes) - lookup.hits) * prefetch.width
        self._telemetry.l2_prefetch_lookup_objects_chunks.add(missing)
        prefetch.flow = self._flows.start(self._run(prefetch))
        if not prefetch.flow.done:
            self._flows.when(lookup.ended, partial(self._stop, prefetch))
            self._later(self._timeout, prefetch.at_deadline)

    def when_loaded(self, lookup: Lookup, callback: Callable[[], None]) -> None:
        """Call back once, when `lookup` is not loading any more."""
        prefetch = self._under_way.get(lookup)
        if prefetch is None:
            callback()
        else:
            prefetch.waiters.append(callback)

    def forget_waiter(self, lookup: Lookup, callback: Callable[[], None]) -> None:
        """Do not call back any more, if that is still to come."""
        prefetch = self._under_way.get(lookup)
        if prefetch is not None and callback in prefetch.waiters:
            prefetch.waiters.remove(callback)

    def finish(self, lookup: Lookup) -> None:
        """Answer this one with what has arrived."""
        prefetch = self._under_way.get(lookup)
        if prefetch is not None:
            self._give_up(prefetch)

    def finish_all(self) -> None:
        """Answer with what has arrived."""
        for prefetch in list(self._under_way.values()):
            self._stop(prefetch)

    async def _run(self, prefetch: Prefetch) -> None:
        """One lookup, from its turn to its answer; `_stop` cuts it short."""
        client, is_whole = prefetch.lookup.client, False
        try:
            await self._turns.take(client)
            plan = self._flows.start(self._planner.plan(prefetch))
            try:
                await self._arrive(prefetch, plan)
                is_whole = plan.done and prefetch.arrived == len(prefetch.from_l2)
            finally:
                plan.stop("the lookup is over")
                self._flows.start(self._end_turn(client, prefetch.asked))
        except Cancelled:
            pass
        finally:
            self._finish(prefetch, is_whole)

    async def _end_turn(self, client: bytes, asked: Sequence[Outcome[None]]) -> None:
        """Once backends have answered: they would be asked more and more, by who waits for none."""
        too_long = self._flows.sleep(self._timeout)
        for answer in asked:
            if not (answer.done or too_long.done):
                await first(answer, too_long)
        self._turns.end(client)

    async def _arrive(self, prefetch: Prefetch, plan: Flow[None]) -> None:
        """Wait for one planned chunk after the other, until one does not come or all are there."""
        lookup = prefetch.lookup
        while True:
            while prefetch.arrived < lookup.hits:
                chunk = prefetch.arrived
                entries = [entry for of_rank in lookup.objects for entry in of_rank[chunk]]
                if not await _is_complete(entries):
                    return
                prefetch.arrived += 1
            if plan.done:
                return plan.result()
            await first(plan, prefetch.grew)

    def _stop(self, prefetch: Prefetch) -> None:
        """What has arrived has to do."""
        prefetch.flow.stop("nobody waits any more")

    def _give_up(self, prefetch: Prefetch) -> None:
        """The deadline."""
        if not prefetch.flow.done:
            self._telemetry.l2_prefetch_deadline_requests.add(1)
            prefetch.span.set(deadline=True)
            self._stop(prefetch)

    def _finish(self, prefetch: Prefetch, is_whole: bool) -> None:
        del self._under_way[prefetch.lookup]
        prefetch.at_deadline.forget()
        if any(prefetch.from_l2):
            self._telemetry.l2_prefetch_load_submitted_requests.add(1)
            if is_whole:
                self._telemetry.l2_load_completed_requests.add(1)
            self._order(prefetch)
        if not prefetch.lookup.ended.done:
            hits = prefetch.on_finished(prefetch, prefetch.arrived)
            self._leases.end_loading(prefetch.lookup, hits)
        prefetch.span.end()
        for callback in prefetch.waiters:
            callback()
        if prefetch.arrived < len(prefetch.from_l2):
            self._loads.drop_unwanted()

    def _order(self, prefetch: Prefetch) -> None:
        """What was loaded came in any order: its head is to outlive its tail all the same.

        Also what is behind a gap, and no hit: the next store may fill the gap.
        """
        planned = prefetch.hashes[: len(prefetch.from_l2)]
        spaces = [want.space for of_rank in prefetch.wants for want in of_rank]
        for space in spaces:
            self._l1.touch(space, planned)
        names = [object_name(space, each) for each in planned for space in spaces]
        for backend in self._backends:
            backend.catalog.touch_sequence(names)


async def _is_complete(entries: list[Entry]) -> bool:
    """Wait until all of these are there, or one will not come."""
    while (states := {entry.state for entry in entries}) <= _MAY_STILL_COME:
        pending = [entry.settled for entry in entries if entry.settled is not None]
        if not pending:
            return states <= _COMPLETE
        await first(*pending)
    return False
