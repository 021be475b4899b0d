"""The server's behaviour as one object: the operation handlers, and what admin may ask."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from sidecar.cache.check import problems
from sidecar.engines.host_memory import HostMemory
from sidecar.handlers.checksums import Hashing
from sidecar.handlers.control import Control
from sidecar.handlers.core import Core
from sidecar.handlers.engine_driven import EngineDriven
from sidecar.handlers.eviction import Eviction
from sidecar.handlers.kv_events.history import History
from sidecar.handlers.kv_events.subscriptions import Subscriptions
from sidecar.handlers.liveness import Liveness
from sidecar.handlers.lookups import Lookups
from sidecar.handlers.native import Native
from sidecar.handlers.prefetch_jobs import PrefetchJobs
from sidecar.handlers.protecting import Protecting
from sidecar.handlers.registration import Registrations
from sidecar.handlers.retrieves import Retrieves
from sidecar.handlers.samples import Samples
from sidecar.handlers.snapshot import snapshot
from sidecar.handlers.stored_objects import StoredObjects
from sidecar.handlers.stores import Stores
from sidecar.handlers.tenants import Tenants
from sidecar.handlers.withheld import Withheld
from sidecar.tiers.clearing import Cleared

# A piece takes milliseconds, mapping a very large worker some seconds.
_STUCK_SECONDS = 120.0


class Service:
    """Everything that can be asked of the cache. All methods on the loop thread but `health`.

    `samples`: the figures of the last 15 minutes, to be sampled by the loop; `prefetches`: those
    asked for over HTTP; `objects`: objects one by one; `tenants`: quotas; `protecting`: what
    is not to be evicted; `history`: KV events.
    """

    def __init__(
        self,
        core: Core,
        post: Callable[[Callable[[], None]], None],
        later: Callable[[float, Callable[[], None]], None],
    ) -> None:
        """`post` runs a callback on the loop thread soon, `later(seconds, fn)` is a timer."""
        self._core = core
        eviction = Eviction(core, post)
        self._engine_driven = EngineDriven(core, eviction)
        self._registrations = Registrations(core, self._engine_driven)
        store_handler = Stores if core.past_l1 is None else core.past_l1.store_handler
        self._stores = store_handler(core, eviction, self._registrations.forget)
        self._retrieves = Retrieves(core, self._registrations.forget)
        self._withheld = Withheld(core.now, later, self._registrations.forget_client)
        self.withhold = self._withheld.hold
        self._lookups = Lookups(core, later, self._withheld)
        self._control = Control(core, self._withheld)
        self._native = Native(core, eviction)
        self.history = History(core, core.config.kv_event_log_size)
        self._subscriptions = Subscriptions(core, self.history)
        core.telemetry.gauge_source("kv_event_readers", lambda: len(self._subscriptions), "stream")
        self.tenants = Tenants(
            core.l1, core.tiers.backends, core.config.quotas, eviction.keep_quotas
        )
        for gauge, what in (("tenant_usage_bytes", "used"), ("tenant_quota_bytes", "limit")):
            core.telemetry.gauges[gauge].observe_all(partial(self.tenants.measured, what))
        self.protecting = Protecting(core.l1, core.recent)
        self._eviction = eviction
        self.prefetches, self.objects = PrefetchJobs(core, self._lookups), StoredObjects(core)
        self.samples = Samples(core)
        self._hashing: Future[dict[str, Any]] | None = None

    def liveness(self, is_connected: Callable[[bytes], bool]) -> Liveness:
        """The watch over workers and clients; to be ticked by the loop."""
        parts = self._engine_driven, self._registrations, self._withheld, self._native
        return Liveness(self._core, *parts, is_connected)

    def grow(self, offset: int, size: int) -> None:
        """The next `size` bytes of the arena, from `offset`, may be used."""
        if offset not in self._core.arena.resident:
            self._core.l1.grow(offset, size)
        self._core.gpus.populated(offset)

    def on_stall(self) -> None:
        """The server has not run for longer than its clients wait for a ping."""
        self._registrations.forget_all()

    def close(self) -> None:
        """Begin nothing new from now on."""
        self._core.closing = True
        self._core.tiers.begin_stop()

    def tick(self) -> None:
        """Once a second."""
        self._core.l1.protections.expire(self._core.now())
        self._eviction.keep_quotas()

    def snapshot(self) -> dict[str, Any]:
        """The state of the cache, for people and dashboards."""
        whole = snapshot(self._core, self._engine_driven, self._native)
        return {
            **whole,
            "tenants": self.tenants.rows(),
            "protected": self.protecting.totals(),
            "kv_events": {
                **self._subscriptions.status(),
                "native_readers": self._native.event_readers(),
            },
        }

    def problems(self) -> list[str]:
        """What of the L1's accounts is not true: nothing, unless the server has a bug.

        Keeps everybody waiting meanwhile, for some microseconds an object.
        """
        return problems(self._core.l1, self._core.leases)

    def clear(self, tiers: Sequence[str], force: bool) -> "Future[list[Cleared]]":
        """Drop everything from `tiers` (l1, l2); what came of it in each L2 adapter.

        The L1 keeps what was promised to somebody, but not with `force`.
        """
        future: Future[list[Cleared]] = Future()
        if "l1" in tiers:
            self._core.l1.clear(force)
        if "l2" in tiers:
            self._core.tiers.clear(future.set_result)
        else:
            future.set_result([])
        return future

    def block_checksums(
        self, instance_id: int, block_ids: Sequence[int], blocks_per_chunk: int, layerwise: bool
    ) -> "Future[dict[str, Any]]":
        """Digests of a worker's blocks, computed on a copy thread, piece by piece.

        Raises KeyError for a worker that has named no memory, ValueError for one on a GPU and for
        bad ids, RuntimeError while others' blocks are hashed.
        """
        instance = self._core.registry.instances.get(instance_id)
        if instance is None or instance.layout is None:
            raise KeyError(instance_id)
        if not isinstance(instance.memory, HostMemory):
            raise ValueError(f"the server does not read memory of {instance.mapped.device} itself")
        blocks = min(group.blocks for group in instance.layout.groups)
        if not block_ids or min(block_ids) < 0 or max(block_ids) >= blocks:
            raise ValueError(f"block ids must be in [0, {blocks})")
        if len(set(block_ids)) < len(block_ids):
            raise ValueError("a block id is there twice")
        if self._hashing is not None and not self._hashing.done():
            raise RuntimeError("other blocks are being hashed: try again later")
        host = instance.memory.host
        hashing = Hashing(self._core.copies, host, block_ids, blocks_per_chunk, layerwise)
        self._hashing = hashing.future
        hashing.go_on()
        return hashing.future

    def health(self) -> str | None:
        """None if the cache can serve, else why not. Any thread."""
        copies = self._core.copies
        if self._core.closing:
            return "shutting down"
        if not copies.alive():
            return "a copy thread has died"
        stuck = copies.stuck_seconds()
        return f"no copy has ended for {stuck:.0f} s" if stuck > _STUCK_SECONDS else None

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """What is served on the wire, by operation name."""
        registrations, engine_driven = self._registrations, self._engine_driven
        lookups, control = self._lookups, self._control
        return {
            "register_kv_cache": registrations.register_handles,
            "unregister_kv_cache": registrations.unregister,
            "register_kv_cache_engine_driven_context": registrations.register_engine_driven,
            "unregister_kv_cache_engine_driven_context": registrations.unregister,
            "store": self._stores.store,
            "retrieve": self._retrieves.retrieve,
            "lookup": lookups.lookup,
            "query_prefetch_status": lookups.query,
            "wait_prefetch_status": lookups.wait,
            "free_lookup_locks": lookups.free,
            "end_session": lookups.end_session,
            "prepare_store": engine_driven.prepare_store,
            "commit_store": engine_driven.commit_store,
            "prepare_retrieve": engine_driven.prepare_retrieve,
            "commit_retrieve": engine_driven.commit_retrieve,
            "clear": control.clear,
            "get_chunk_size": control.get_chunk_size,
            "get_experimental": control.get_experimental,
            "ping": control.ping,
            "noop": control.noop,
            "report_block_allocation": control.report_block_allocation,
            "subscribe_kv_events": self._subscriptions.subscribe,
            **self._native.handlers(),
        }
