"""What a lookup of the native door finds in L2, brought into the L1 within its budget."""

import itertools
from collections.abc import Sequence

from sidecar.cache.entry import Entry, State
from sidecar.cache.keys import SpaceKey
from sidecar.cache.leases import Lookup, Scope
from sidecar.flow import Outcome, first
from sidecar.handlers.core import Core
from sidecar.tiers.names import object_name
from sidecar.tiers.prefetch_plan import Prefetch, Want


class Below:
    """Loads from L2 for lookups of native engines. Loop thread only."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._numbers = itertools.count()

    def may_have(self, space: SpaceKey, name: bytes) -> bool:
        """Whether a backend has the object, or may have it and has to be asked."""
        below = object_name(space, name)
        backends = [each for each in self._core.tiers.backends if each.reads.allows()]
        return any(below in each.catalog or each.must_ask for each in backends)

    async def load(
        self, client: bytes, space: SpaceKey, size: int, hashes: Sequence[bytes], seconds: float
    ) -> "Arrived":
        """What of the sequence `hashes` arrives in so much time, from its first on.

        Nothing where too many lookups are open.
        """
        core = self._core
        weight = core.room_for_lookup(client, 2 * len(hashes))
        # Its own kind of name: no request id of lmcache's clients is found under it.
        request_id, scope = f"\0native-{next(self._numbers)}", Scope(space.model_name, 0, "")
        deadline = core.now() + core.config.l1_read_ttl_seconds
        lookup = Lookup(
            client, request_id, scope, [], [[]], 1, deadline, loading=True, weight=weight or 0
        )
        from_l2: list[bool] = []

        def finished(prefetch: Prefetch, hits: int) -> int:
            from_l2.extend(prefetch.from_l2[:hits])
            return hits

        if weight is not None:
            core.leases.add(lookup)
            core.tiers.prefetches.begin(lookup, [[Want(space, size)]], hashes, finished)
            loaded: Outcome[None] = Outcome()
            core.tiers.prefetches.when_loaded(lookup, lambda: loaded.set(None))
            await first(loaded, core.flows.sleep(seconds))
            core.tiers.prefetches.finish(lookup)
        else:
            lookup.ended.set(None)
        return Arrived(core, lookup, from_l2)


class Arrived:
    """The objects of the prefix that a lookup holds now. They may go once it lets go of them.

    `from_l2`: of each whether it was loaded, or had come into the L1 before.
    """

    def __init__(self, core: Core, lookup: Lookup, from_l2: Sequence[bool]) -> None:
        self._core = core
        self._lookup = lookup
        self.from_l2 = from_l2

    @property
    def entries(self) -> list[Entry]:
        """None of them where somebody else has ended the lookup."""
        if self._lookup.ended.done:
            return []
        entries = (entry for (entry,) in self._lookup.objects[0])
        # What has been cleared meanwhile is promised still, and not there.
        return list(itertools.takewhile(lambda entry: entry.state is State.READY, entries))

    def let_go(self) -> None:
        self._core.leases.end(self._lookup)
