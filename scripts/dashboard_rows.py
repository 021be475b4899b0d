"""The charts of the Grafana dashboard, row by row."""

from typing import NamedTuple


class Panel(NamedTuple):
    """A chart of `queries` (PromQL to the text of the legend); `unit` is one of Grafana's."""

    title: str
    unit: str
    queries: dict[str, str]
    text: str = ""
    stack: bool = False
    one_number: bool = False


def metric(name: str, more: str = "") -> str:
    return f'lmcache_mp_{name}{{instance=~"$instance"{more}}}'


def rate(name: str, by: str = "instance", more: str = "") -> str:
    return f"sum by ({by}) (rate({metric(name, more)}[$__rate_interval]))"


def quantile(q: float, name: str, by: str = "instance") -> str:
    return f"histogram_quantile({q}, {rate(f'{name}_bucket', f'{by}, le')})"


def ratio(hit: str, by: str = "instance") -> str:
    return f"{rate(hit, by)} / {rate('lookup_requested_tokens_total', by)}"


ROWS: dict[str, list[Panel]] = {
    "Overview": [
        Panel("Servers", "none", {f"count({metric('healthy')})": "servers"}, one_number=True),
        Panel(
            "Unhealthy servers", "none",
            {f"count({metric('healthy')} == 0) or vector(0)": "unhealthy"},
            "They run, but would not answer a worker.", one_number=True,
        ),
        Panel(
            "Alerts", "none",
            {'count(ALERTS{alertname=~"KVSidecar.+", alertstate="firing"}) or vector(0)': "firing"},
            "Needs rules.yaml.", one_number=True,
        ),
        Panel(
            "Workers", "none", {f"sum({metric('registered_workers')})": "workers"}, one_number=True
        ),
        Panel(
            "Hit rate", "percentunit",
            {
                f"sum(rate({metric('lookup_hit_tokens_total')}[$__rate_interval]))"
                f" / sum(rate({metric('lookup_requested_tokens_total')}[$__rate_interval]))": "hit"
            },
            one_number=True,
        ),
        Panel("L1 in use", "percentunit", {f"max({metric('l1_usage_ratio')})": "fullest"},
              "Of the fullest server.", one_number=True),
    ],
    "Hits": [
        Panel("Hit rate", "percentunit", {ratio("lookup_hit_tokens_total"): "{{instance}}"},
              "Tokens found, of the tokens asked for in whole chunks."),
        Panel(
            "Where tokens come from", "short",
            {
                rate("lookup_hit_l1_tokens_total", "job"): "L1",
                rate("lookup_hit_l2_tokens_total", "job"): "L2",
                f"{rate('lookup_requested_tokens_total', 'job')}"
                f" - {rate('lookup_hit_tokens_total', 'job')}": "not cached",
            },
            "Tokens a second.", stack=True,
        ),
        Panel("Hit rate by model", "percentunit",
              {ratio("lookup_hit_tokens_total", "model_name"): "{{model_name}}"}),
        Panel("Lookups", "reqps", {rate("lookups_requests_total", "model_name"): "{{model_name}}"}),
        Panel("Lookups that could not be a hit", "reqps",
              {rate("lookup_early_exit_requests_total", "reason"): "{{reason}}"}),
    ],
    "L1": [
        Panel(
            "Memory", "bytes",
            {
                metric("l1_memory_usage_bytes"): "{{instance}} in use",
                metric("l1_memory_populated_bytes"): "{{instance}} resident",
            },
        ),
        Panel(
            "Chunks", "cps",
            {
                rate("l1_write_chunks_total"): "{{instance}} written",
                rate("l1_read_chunks_total"): "{{instance}} read",
                rate("l1_evicted_chunks_total"): "{{instance}} evicted",
            },
        ),
        Panel(
            "Age of what is evicted (median)", "s",
            {
                quantile(0.5, "l1_chunk_lifetime_seconds"): "{{instance}} since its store",
                quantile(0.5, "l1_chunk_idle_before_evict_seconds"): "{{instance}} since its use",
                quantile(0.5, "l1_chunk_reuse_gap_seconds"): "{{instance}} between two uses",
            },
            "L1 is too small when the second is not well above the third.",
        ),
        Panel(
            "Failures", "cps",
            {
                rate("l1_allocation_failure_chunks_total", "during"): "no memory: {{during}}",
                rate("l1_read_failure_chunks_total", "reason"): "not readable: {{reason}}",
            },
        ),
        Panel(
            "Leases", "short",
            {
                metric("live_leases"): "{{instance}} held",
                rate("leases_expired_total"): "{{instance}} expired a second",
            },
            "Objects that a reader was promised.",
        ),
        Panel(
            "Eviction", "ops",
            {
                rate("l1_eviction_loop_ticks_total"): "{{instance}} checks",
                rate("l1_eviction_loop_triggered_total"): "{{instance}} evictions",
            },
        ),
    ],
    "Requests and workers": [
        Panel("Requests", "reqps",
              {rate("request_latency_seconds_count", "operation"): "{{operation}}"}),
        Panel(
            "Latency", "s",
            {
                quantile(0.5, "request_latency_seconds", "operation"): "{{operation}} median",
                quantile(0.99, "request_latency_seconds", "operation"): "{{operation}} 99%",
            },
        ),
        Panel("Refusals", "reqps",
              {rate("refusals_total", "operation, reason"): "{{operation}}: {{reason}}"}),
        Panel("Bytes moved", "Bps", {rate("transfer_bytes_total", "direction"): "{{direction}}"}),
        Panel(
            "Speed of a transfer (median)", "short",
            {
                quantile(0.5, "l0_l1_store_throughput_GB_per_second", "device"): "store {{device}}",
                quantile(0.5, "l0_l1_load_throughput_GB_per_second", "device"): "load {{device}}",
            },
            "GB a second.",
        ),
        Panel(
            "Transfers", "ops",
            {
                rate("num_submitted_stores_total"): "{{instance}} stores begun",
                rate("num_finished_stores_total"): "{{instance}} stores ended",
                rate("num_submitted_retrieves_total"): "{{instance}} retrieves begun",
                rate("num_finished_retrieves_total"): "{{instance}} retrieves ended",
            },
        ),
        Panel("Transfers under way", "short", {metric("queue_depth"): "{{instance}}"}),
        Panel("Age of the oldest transfer", "s", {metric("queue_age_seconds"): "{{instance}}"}),
        Panel("Workers", "short", {metric("registered_workers"): "{{instance}}"}),
        Panel(
            "Workers that come and go", "short",
            {
                rate("registrations_total", "kind"): "registered: {{kind}}",
                rate("re_registrations_total", "kind"): "registered again: {{kind}}",
                rate("reaped_workers_total", "reason"): "lost: {{reason}}",
            },
            "A second.",
        ),
    ],
    "L2": [
        Panel("Kept", "bytes", {metric("l2_usage_bytes"): "{{instance}} {{l2_name}}"}),
        Panel("Objects", "short", {metric("l2_objects"): "{{instance}} {{l2_name}}"}),
        Panel(
            "Traffic", "cps",
            {
                rate("l2_store_completed_objects_chunks_total", "l2_name"): "stored {{l2_name}}",
                rate("l2_prefetch_load_completed_chunks_total", "l2_name"): "loaded {{l2_name}}",
                rate("l2_evicted_objects_chunks_total", "l2_name"): "evicted {{l2_name}}",
            },
        ),
        Panel(
            "Speed of an object (median)", "short",
            {
                quantile(0.5, "l2_store_throughput_GB_per_second", "l2_name"): "store {{l2_name}}",
                quantile(0.5, "l2_load_throughput_GB_per_second", "l2_name"): "load {{l2_name}}",
            },
            "GB a second.",
        ),
        Panel(
            "Waiting and under way", "short",
            {
                metric("num_queued_l2_stores"): "{{instance}} {{l2_name}} to be stored",
                metric("num_inflight_l2_stores"): "{{instance}} {{l2_name}} being stored",
                metric("num_inflight_l2_loads"): "{{instance}} {{l2_name}} being loaded",
            },
        ),
        Panel("Age of the queue", "s",
              {metric("l2_queue_age_seconds"): "{{instance}} {{l2_name}}"}),
        Panel(
            "Cut off", "short", {metric("l2_breaker_open"): "{{instance}} {{l2_name}} {{kind}}"},
            "1 while the breaker is open.",
        ),
        Panel(
            "Errors", "ops",
            {
                rate("l2_errors_total", "l2_name, operation, cause"):
                    "{{l2_name}} {{operation}}: {{cause}}",
                rate("l2_timeouts_total", "l2_name"): "{{l2_name}}: timeout",
            },
        ),
        Panel(
            "Bad objects", "short",
            {
                f"sum by (l2_name, reason) ({metric('l2_corrupt_objects_total')})":
                    "{{l2_name}}: {{reason}}",
                f"sum by (l2_name) ({metric('l2_quarantined_objects_total')})":
                    "{{l2_name}}: put aside",
            },
            "Since the server started.",
        ),
        Panel("Not kept", "cps",
              {rate("l2_dropped_objects_chunks_total", "l2_name, reason"):
                  "{{l2_name}}: {{reason}}"}),
        Panel(
            "Lookups in L2", "reqps",
            {
                rate("l2_prefetch_lookup_requests_total"): "{{instance}} asked",
                rate("l2_prefetch_load_submitted_requests_total"): "{{instance}} something loaded",
                rate("l2_prefetch_deadline_requests_total"): "{{instance}} out of time",
            },
        ),
        Panel(
            "Not loaded", "cps",
            {rate("l2_prefetch_failure_chunks_total", "reason"): "{{reason}}"},
        ),
        Panel("Lookups that wait for L2", "short",
              {metric("active_prefetch_jobs"): "{{instance}}"}),
    ],
}  # fmt: skip
