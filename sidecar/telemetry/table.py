"""Every ``lmcache_mp.*`` instrument, declared once.

Names, units and labels are those of LMCache 0.5.6 where it has the instrument.
"""

from sidecar.telemetry.declarations import Declarations

_LOOKUP = ("model_name", "cache_salt")
_TRANSFER = ("device", "engine_id", "model_name")
_L1 = {"l1_tag": "default"}
_L2 = ("l2_name",)
_TENANT = ("cache_salt", "tier")
_L2_ADAPTER = ("l2_name", "adapter_index")
_L1_MEMORY = {"backend": "shm", "l1_tag": "default"}

# From the first reuse within a request to a day.
_AGES = (0.1, 1, 5, 10, 30, 60, 300, 600, 1800, 3600, 7200, 21600, 86400)
_RATES = (0.1, 0.25, 0.5, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100)
_LATENCIES = (
    *(5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)


class Instruments(Declarations):
    """The counters and histograms as attributes, the gauges by name."""

    def __init__(self) -> None:
        super().__init__()
        for heading, declare in (
            ("Lookups", self._declare_lookups),
            ("L1", self._declare_l1),
            ("Transfers", self._declare_transfers),
            ("Workers and requests", self._declare_workers),
            ("L2: stores", self._declare_l2_stores),
            ("L2: loads", self._declare_l2_loads),
            ("L2: adapters", self._declare_l2_health),
        ):
            self._begin_group(heading)
            declare()

    def _declare_lookups(self) -> None:
        self.lookups_requests = self._counter("lookups", "requests", "Lookups answered", _LOOKUP)
        self.lookup_requested_tokens = self._counter(
            "lookup_requested", "tokens", "Tokens looked up, in whole chunks", _LOOKUP
        )
        self.lookup_hit_tokens = self._counter("lookup_hit", "tokens", "Tokens found", _LOOKUP)
        self.lookup_hit_l1_tokens = self._counter(
            "lookup_hit_l1", "tokens", "Tokens found in L1", _LOOKUP
        )
        self.lookup_hit_l1_keys = self._counter(
            "lookup_hit_l1_keys", "keys", "Objects found in L1", _LOOKUP
        )
        self.lookup_hit_l2_tokens = self._counter(
            "lookup_hit_l2", "tokens", "Tokens found in L2", _LOOKUP
        )
        self.lookup_hit_l2_keys = self._counter(
            "lookup_hit_l2_keys", "keys", "Objects found in L2", _LOOKUP
        )
        self.lookup_early_exit_requests = self._counter(
            "lookup_early_exit",
            "requests",
            "Lookups that could not be a hit",
            ("reason", *_LOOKUP),
        )
        self._gauge("active_prefetch_jobs", "Lookups whose objects are being loaded")

    def _declare_l1(self) -> None:
        self.l1_read_chunks = self._counter("l1_read", "chunks", "Chunks read", fixed=_L1)
        self.l1_write_chunks = self._counter("l1_write", "chunks", "Chunks written", fixed=_L1)
        self.l1_evicted_chunks = self._counter("l1_evicted", "chunks", "Chunks evicted", fixed=_L1)
        self.l1_eviction_loop_ticks = self._counter(
            "l1_eviction_loop_ticks", "", "Checks whether to evict", fixed=_L1
        )
        self.l1_eviction_loop_triggered = self._counter(
            "l1_eviction_loop_triggered", "", "Checks that evicted something", fixed=_L1
        )
        self.l1_allocation_failure_chunks = self._counter(
            "l1_allocation_failure",
            "chunks",
            "Chunks for which no memory could be allocated",
            ("during", "model_name"),
            _L1,
        )
        self.l1_read_failure_chunks = self._counter(
            "l1_read_failure",
            "chunks",
            "Chunks that could not be read",
            ("during", "reason", "model_name"),
            _L1,
        )
        self.l1_chunk_lifetime = self._histogram(
            "l1_chunk_lifetime", "s", "From a chunk's store to its eviction", _AGES, fixed=_L1
        )
        self.l1_chunk_idle_before_evict = self._histogram(
            "l1_chunk_idle_before_evict",
            "s",
            "From a chunk's last use to its eviction",
            _AGES,
            fixed=_L1,
        )
        self.l1_chunk_reuse_gap = self._histogram(
            "l1_chunk_reuse_gap", "s", "Between two uses of a chunk", _AGES, fixed=_L1
        )
        self._gauge("l1_memory_usage_bytes", "Bytes of L1 in use", _L1_MEMORY)
        self._gauge("l1_memory_pinned_bytes", "Bytes of L1 that are pinned for GPUs", _L1_MEMORY)
        self._gauge("l1_memory_populated_bytes", "Bytes of L1 that hold pages", _L1_MEMORY)
        self._gauge("l1_usage_ratio", "Share of L1 in use", _L1_MEMORY)
        self._gauge("live_leases", "Objects that are leased, pinned or being written")
        self._gauge("l1_protections", "Sequences that an operator has protected from eviction")
        self._gauge("l1_protected_bytes", "Bytes of L1 that protected sequences take")
        self._gauge("l1_kept", "1 while the L1 is kept for the next server, else 0")
        self._gauge("l1_undigested_objects", "Objects without a digest, which a crash would lose")
        self._gauge("l1_unproven_objects", "Objects of the last server still to be verified")
        self._gauge("l1_others_bytes", "Bytes of L1 that workers of the last server hold")
        self._gauge("tenant_usage_bytes", "Bytes of tenants that have a quota", labels=_TENANT)
        self._gauge("tenant_quota_bytes", "Quotas of tenants; 0 = no limit", labels=_TENANT)

    def _declare_transfers(self) -> None:
        self.num_submitted_stores = self._counter(
            "num_submitted_stores", "", "Stores begun", ("device",)
        )
        self.num_finished_stores = self._counter(
            "num_finished_stores", "", "Stores ended", ("device",)
        )
        self.num_submitted_retrieves = self._counter(
            "num_submitted_retrieves", "", "Retrieves begun", ("device",)
        )
        self.num_finished_retrieves = self._counter(
            "num_finished_retrieves", "", "Retrieves ended", ("device",)
        )
        self.num_chunks_loaded = self._counter(
            "num_chunks_loaded", "", "Chunks loaded into a worker", ("worker_id", *_LOOKUP)
        )
        self.transfer_bytes = self._counter(
            "transfer", "By", "Bytes copied for workers", ("direction", "device")
        )
        self.l0_l1_store_throughput = self._histogram(
            "l0_l1_store_throughput", "GB/s", "Speed of stores", _RATES, _TRANSFER
        )
        self.l0_l1_load_throughput = self._histogram(
            "l0_l1_load_throughput", "GB/s", "Speed of retrieves", _RATES, _TRANSFER
        )

        self.gpu_transfer_phase = self._histogram(
            "gpu_transfer_phase",
            "s",
            "Parts of a transfer with a GPU: waiting for the worker's event, copying",
            _LATENCIES,
            ("device", "direction", "phase"),
        )

    def _declare_workers(self) -> None:
        self.request_latency = self._histogram(
            "request_latency",
            "s",
            "From a request's arrival to its reply",
            _LATENCIES,
            ("operation",),
        )
        self.refusals = self._counter(
            "refusals", "", "Requests answered with a negative", ("operation", "reason")
        )
        self.registrations = self._counter("registrations", "", "Workers registered", ("kind",))
        self.re_registrations = self._counter(
            "re_registrations", "", "Registrations that replaced one", ("kind",)
        )
        self.reaped_workers = self._counter(
            "reaped_workers", "", "Workers dropped by the server", ("reason",)
        )
        self.leases_expired = self._counter("leases_expired", "", "Leases that timed out")
        self._gauge("registered_workers", "Workers registered now")
        self._gauge("native_engines", "Engines attached with the native connector")
        self._gauge("native_reserved_bytes", "Bytes of L1 reserved for stores of native engines")
        self._gauge("native_pinned_bytes", "Bytes of L1 pinned by requests of native engines")
        self._gauge("queue_depth", "Transfers waiting for a copy thread")
        self._gauge("queue_age_seconds", "Age of the oldest transfer that has not ended")
        self.kv_events_sent = self._counter("kv_events_sent", "", "KV events sent", ("reader",))
        self.kv_events_lost = self._counter(
            "kv_events_lost", "", "Times that a reader of KV events was too slow", ("reader",)
        )
        self.kv_events_replayed = self._counter(
            "kv_events_replayed", "", "Batches of KV events sent again on request"
        )
        self._gauge("kv_event_readers", "Readers of KV events", labels=("reader",))
        self._gauge("healthy", "1 while the server would answer a worker, as /healthcheck tells")

    def _declare_l2_stores(self) -> None:
        self.l2_store_deferred_chunks = self._counter(
            "l2_store_deferred", "chunks", "Stored chunks that L2 gets when they are used again"
        )
        self._gauge(
            "l2_write_amplification", "Bytes written to L2 for each that workers stored", labels=_L2
        )
        self.l2_store_submitted_requests = self._counter(
            "l2_store_submitted", "requests", "Stores submitted to L2", _L2
        )
        self.l2_store_submitted_objects_chunks = self._counter(
            "l2_store_submitted_objects", "chunks", "Objects submitted to L2", _L2
        )
        self.l2_store_completed_requests = self._counter(
            "l2_store_completed", "requests", "Stores that L2 has completed", _L2
        )
        self.l2_store_completed_objects_chunks = self._counter(
            "l2_store_completed_objects", "chunks", "Objects written to L2", _L2
        )
        self.l2_store_throughput = self._histogram(
            "l2_store_throughput", "GB/s", "Speed of writing one object", _RATES, _L2
        )
        self.l2_dropped_objects = self._counter(
            "l2_dropped_objects", "chunks", "Objects that were not kept", (*_L2, "reason")
        )
        self.l2_evicted_objects_chunks = self._counter(
            "l2_evicted_objects", "chunks", "Objects evicted from L2", _L2
        )
        self._gauge("num_inflight_l2_stores", "Objects being written", _L1, _L2)
        self._gauge("num_queued_l2_stores", "Objects waiting to be written", labels=_L2)
        self._gauge(
            "l2_queue_age_seconds", "How long the next object to be written has waited", labels=_L2
        )

    def _declare_l2_loads(self) -> None:
        self.l2_prefetch_lookup_requests = self._counter(
            "l2_prefetch_lookup", "requests", "Lookups that continued in L2"
        )
        self.l2_prefetch_lookup_objects_chunks = self._counter(
            "l2_prefetch_lookup_objects", "chunks", "Objects looked up in L2"
        )
        self.l2_prefetch_load_submitted_requests = self._counter(
            "l2_prefetch_load_submitted", "requests", "Lookups for which something was loaded"
        )
        self.l2_prefetch_load_submitted_objects_chunks = self._counter(
            "l2_prefetch_load_submitted_objects", "chunks", "Objects submitted for loading", _L2
        )
        self.l2_prefetch_load_completed_chunks = self._counter(
            "l2_prefetch_load_completed", "chunks", "Objects loaded and verified", _L2
        )
        self.l2_load_completed_requests = self._counter(
            "l2_load_completed", "requests", "Lookups whose loads have all completed"
        )
        self.l2_prefetch_failure_chunks = self._counter(
            "l2_prefetch_failure", "chunks", "Objects not loaded", ("reason", "model_name")
        )
        self.l2_prefetch_deadline_requests = self._counter(
            "l2_prefetch_deadline", "requests", "Lookups answered before all had arrived"
        )
        self.l2_load_throughput = self._histogram(
            "l2_load_throughput", "GB/s", "Speed of reading one object", _RATES, _L2
        )
        self.l2_transfer_bytes = self._counter(
            "l2_transfer", "By", "Bytes written to L2 and read from it", ("direction", *_L2)
        )
        self._gauge("num_inflight_l2_loads", "Objects being read", labels=_L2_ADAPTER)
        self._gauge("inflight_load_memory_usage_bytes", "Bytes being read", labels=_L2_ADAPTER)

    def _declare_l2_health(self) -> None:
        self.l2_corrupt_objects = self._counter(
            "l2_corrupt_objects", "", "Objects that failed verification", (*_L2, "reason")
        )
        self.l2_quarantined_objects = self._counter(
            "l2_quarantined_objects", "", "Objects moved to quarantine", _L2
        )
        self.l2_timeouts = self._counter("l2_timeouts", "", "Calls that took too long", _L2)
        self.l2_errors = self._counter(
            "l2_errors", "", "Calls that failed", (*_L2, "operation", "cause")
        )
        self.l2_breaker_opened = self._counter(
            "l2_breaker_opened", "", "Times that a breaker opened", (*_L2, "kind")
        )
        self._gauge("l2_usage_bytes", "Bytes kept", labels=_L2)
        self._gauge("l2_objects", "Objects known to be kept", labels=_L2)
        self._gauge("l2_breaker_open", "1 while the breaker is open", labels=(*_L2, "kind"))
        self._gauge("l2_store_adapters", "Adapters that stores go to", _L1, ("state",))
        self._gauge("l2_prefetch_adapters", "Adapters that lookups go to", labels=("state",))
