"""What a scraper sees: the names of LMCache 0.5.6, zeros before first use, bounded labels."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from sidecar.telemetry import Telemetry

LOOKUP = {"model_name", "cache_salt"}
TRANSFER = {"device", "engine_id", "model_name"}
L1 = {"l1_tag"}
L2 = {"l2_name"}
L2_ADAPTER = L2 | {"adapter_index"}
# Prometheus name without lmcache_mp_: kind and labels.
EXPECTED: dict[str, tuple[str, set[str]]] = {
    "lookups_requests": ("counter", LOOKUP),
    "lookup_requested_tokens": ("counter", LOOKUP),
    "lookup_hit_tokens": ("counter", LOOKUP),
    "lookup_hit_l1_tokens": ("counter", LOOKUP),
    "lookup_hit_l1_keys": ("counter", LOOKUP),
    "lookup_hit_l2_tokens": ("counter", LOOKUP),
    "lookup_hit_l2_keys": ("counter", LOOKUP),
    "lookup_early_exit_requests": ("counter", LOOKUP | {"reason"}),
    "l1_read_chunks": ("counter", L1),
    "l1_write_chunks": ("counter", L1),
    "l1_evicted_chunks": ("counter", L1),
    "l1_eviction_loop_ticks": ("counter", L1),
    "l1_eviction_loop_triggered": ("counter", L1),
    "l1_allocation_failure_chunks": ("counter", L1 | {"during", "model_name"}),
    "l1_read_failure_chunks": ("counter", L1 | {"during", "reason", "model_name"}),
    "num_submitted_stores": ("counter", {"device"}),
    "num_finished_stores": ("counter", {"device"}),
    "num_submitted_retrieves": ("counter", {"device"}),
    "num_finished_retrieves": ("counter", {"device"}),
    "num_chunks_loaded": ("counter", LOOKUP | {"worker_id"}),
    "refusals": ("counter", {"operation", "reason"}),
    "registrations": ("counter", {"kind"}),
    "re_registrations": ("counter", {"kind"}),
    "reaped_workers": ("counter", {"reason"}),
    "transfer_bytes": ("counter", {"direction", "device"}),
    "leases_expired": ("counter", set()),
    "l2_store_submitted_requests": ("counter", L2),
    "l2_store_submitted_objects_chunks": ("counter", L2),
    "l2_store_completed_requests": ("counter", L2),
    "l2_store_completed_objects_chunks": ("counter", L2),
    "l2_dropped_objects_chunks": ("counter", L2 | {"reason"}),
    "l2_evicted_objects_chunks": ("counter", L2),
    "l2_prefetch_lookup_requests": ("counter", set()),
    "l2_prefetch_lookup_objects_chunks": ("counter", set()),
    "l2_prefetch_load_submitted_requests": ("counter", set()),
    "l2_prefetch_load_submitted_objects_chunks": ("counter", L2),
    "l2_prefetch_load_completed_chunks": ("counter", L2),
    "l2_prefetch_failure_chunks": ("counter", {"reason", "model_name"}),
    "l2_prefetch_deadline_requests": ("counter", set()),
    "l2_load_completed_requests": ("counter", set()),
    "l2_transfer_bytes": ("counter", L2 | {"direction"}),
    "l2_corrupt_objects": ("counter", L2 | {"reason"}),
    "l2_quarantined_objects": ("counter", L2),
    "l2_timeouts": ("counter", L2),
    "l2_errors": ("counter", L2 | {"operation", "cause"}),
    "l2_breaker_opened": ("counter", L2 | {"kind"}),
    "l1_chunk_lifetime_seconds": ("histogram", L1),
    "l1_chunk_idle_before_evict_seconds": ("histogram", L1),
    "l1_chunk_reuse_gap_seconds": ("histogram", L1),
    "l0_l1_store_throughput_GB_per_second": ("histogram", TRANSFER),
    "l0_l1_load_throughput_GB_per_second": ("histogram", TRANSFER),
    "l2_store_throughput_GB_per_second": ("histogram", L2),
    "l2_load_throughput_GB_per_second": ("histogram", L2),
    "request_latency_seconds": ("histogram", {"operation"}),
    "l1_memory_usage_bytes": ("gauge", L1 | {"backend"}),
    "l1_memory_populated_bytes": ("gauge", L1 | {"backend"}),
    "l1_memory_pinned_bytes": ("gauge", L1 | {"backend"}),
    "gpu_transfer_phase_seconds": ("histogram", {"device", "direction", "phase"}),
    "l1_usage_ratio": ("gauge", L1 | {"backend"}),
    "active_prefetch_jobs": ("gauge", set()),
    "registered_workers": ("gauge", set()),
    "native_engines": ("gauge", set()),
    "native_reserved_bytes": ("gauge", set()),
    "native_pinned_bytes": ("gauge", set()),
    "live_leases": ("gauge", set()),
    "l1_protections": ("gauge", set()),
    "l1_protected_bytes": ("gauge", set()),
    "l1_kept": ("gauge", set()),
    "l1_undigested_objects": ("gauge", set()),
    "l1_unproven_objects": ("gauge", set()),
    "l1_others_bytes": ("gauge", set()),
    "kv_events_sent": ("counter", {"reader"}),
    "kv_events_lost": ("counter", {"reader"}),
    "kv_events_replayed": ("counter", set()),
    "kv_event_readers": ("gauge", {"reader"}),
    "l2_store_deferred_chunks": ("counter", set()),
    "l2_write_amplification": ("gauge", {"l2_name"}),
    "tenant_usage_bytes": ("gauge", {"cache_salt", "tier"}),
    "tenant_quota_bytes": ("gauge", {"cache_salt", "tier"}),
    "queue_depth": ("gauge", set()),
    "queue_age_seconds": ("gauge", set()),
    "healthy": ("gauge", set()),
    "l2_usage_bytes": ("gauge", L2),
    "l2_objects": ("gauge", L2),
    "l2_breaker_open": ("gauge", L2 | {"kind"}),
    "num_inflight_l2_stores": ("gauge", L1 | L2),
    "num_queued_l2_stores": ("gauge", L2),
    "l2_queue_age_seconds": ("gauge", L2),
    "num_inflight_l2_loads": ("gauge", L2_ADAPTER),
    "inflight_load_memory_usage_bytes": ("gauge", L2_ADAPTER),
    "l2_store_adapters": ("gauge", L1 | {"state"}),
    "l2_prefetch_adapters": ("gauge", {"state"}),
}


@pytest.fixture
def telemetry() -> Iterator[Telemetry]:
    made = Telemetry(instance_id="test")
    yield made
    made.close()


def scraped(telemetry: Telemetry) -> dict[str, Metric]:
    families = text_string_to_metric_families(telemetry.render().decode())
    return {family.name.removeprefix("lmcache_mp_"): family for family in families}


def values(telemetry: Telemetry, family: str, sample: str = "") -> dict[tuple[str, ...], float]:
    """Label values, sorted by label name and without those of OpenTelemetry, to the value."""
    metric = scraped(telemetry)[family]
    return {
        tuple(
            value for label, value in sorted(s.labels.items()) if not label.startswith("otel_")
        ): s.value
        for s in metric.samples
        if s.name.endswith(sample)
    }


def test_every_metric_is_there_at_zero_before_first_use(telemetry: Telemetry) -> None:
    families = scraped(telemetry)
    assert set(families) == {*EXPECTED, "target_info"}
    for name, (kind, labels) in EXPECTED.items():
        family = families[name]
        assert family.type == kind, name
        assert family.documentation
        for sample in family.samples:
            assert sample.value == 0, name
            ours = {label for label in sample.labels if not label.startswith("otel_")}
            assert ours - {"le"} == labels, name
            if kind == "counter":
                assert sample.name == f"lmcache_mp_{name}_total"


def test_fixed_labels_and_the_name_of_the_server(telemetry: Telemetry) -> None:
    page = telemetry.render().decode()
    assert 'service_name="kv-sidecar"' in page
    assert 'service_instance_id="test"' in page
    assert values(telemetry, "l1_usage_ratio") == {("shm", "default"): 0}
    assert values(telemetry, "l1_read_chunks") == {("default",): 0}


def test_counters_add_up_for_each_set_of_labels(telemetry: Telemetry) -> None:
    telemetry.lookup_hit_tokens.add(256, "llama", "tenant")
    telemetry.lookup_hit_tokens.add(512, "llama", "tenant")
    telemetry.lookup_hit_tokens.add(1, "qwen", "")
    telemetry.l1_write_chunks.add(3)
    assert values(telemetry, "lookup_hit_tokens") == {("tenant", "llama"): 768, ("", "qwen"): 1}
    assert values(telemetry, "l1_write_chunks") == {("default",): 3}


def test_histograms_have_cumulative_buckets_from_50_us_to_30_s(telemetry: Telemetry) -> None:
    for seconds in (0.00005, 0.0003, 29, 31):
        telemetry.request_latency.record(seconds, "lookup")
    buckets = values(telemetry, "request_latency_seconds", "_bucket")
    assert buckets["5e-05", "lookup"] == 1
    assert buckets["0.0001", "lookup"] == 1
    assert buckets["0.0005", "lookup"] == 2
    assert buckets["30.0", "lookup"] == 3
    assert buckets["+Inf", "lookup"] == 4
    assert values(telemetry, "request_latency_seconds", "_count") == {("lookup",): 4}
    total = values(telemetry, "request_latency_seconds", "_sum")
    assert total == {("lookup",): pytest.approx(60.00035)}


def test_gauges_are_read_when_scraped(telemetry: Telemetry) -> None:
    depth = [5]
    telemetry.gauge_source("queue_depth", lambda: depth[0])
    assert values(telemetry, "queue_depth") == {(): 5}
    depth[0] = 7
    assert values(telemetry, "queue_depth") == {(): 7}


def test_a_gauge_with_labels_has_a_series_for_each_source(telemetry: Telemetry) -> None:
    assert values(telemetry, "l2_usage_bytes") == {("",): 0}
    sizes = {"disk": 5, "bucket": 6}
    telemetry.gauge_source("l2_usage_bytes", lambda: sizes["disk"], "disk")
    telemetry.gauge_source("l2_usage_bytes", lambda: sizes["bucket"], "bucket")
    assert values(telemetry, "l2_usage_bytes") == {("disk",): 5, ("bucket",): 6}
    sizes["disk"] = 7
    assert values(telemetry, "l2_usage_bytes") == {("disk",): 7, ("bucket",): 6}


def test_a_gauge_keeps_its_fixed_labels_beside_those_of_its_source(telemetry: Telemetry) -> None:
    telemetry.gauge_source("num_inflight_l2_stores", lambda: 3, "disk")
    telemetry.gauge_source("l2_breaker_open", lambda: 1, "disk", "load")
    telemetry.gauge_source("l2_breaker_open", lambda: 0, "disk", "store")
    assert values(telemetry, "num_inflight_l2_stores") == {("default", "disk"): 3}
    assert values(telemetry, "l2_breaker_open") == {("load", "disk"): 1, ("store", "disk"): 0}


def test_a_gauge_without_a_name_here_is_an_error(telemetry: Telemetry) -> None:
    with pytest.raises(KeyError):
        telemetry.gauge_source("nonsense", lambda: 0)


def test_a_gauge_that_fails_leaves_the_rest_of_the_page(telemetry: Telemetry) -> None:
    def broken() -> float:
        raise RuntimeError

    telemetry.gauge_source("queue_depth", broken)
    telemetry.gauge_source("live_leases", lambda: 2)
    assert values(telemetry, "live_leases") == {(): 2}


def test_label_values_of_clients_are_bounded(telemetry: Telemetry) -> None:
    for number in range(1000):
        telemetry.lookups_requests.add(1, f"model-{number}", "")
        telemetry.request_latency.record(0.001, f"operation-{number}")
    counted = values(telemetry, "lookups_requests")
    assert len(counted) == 201
    assert counted["other", "other"] == 800
    assert sum(counted.values()) == 1000
    assert values(telemetry, "request_latency_seconds", "_count")[("other",)] == 800


def test_hostile_label_values_do_not_break_the_page(telemetry: Telemetry) -> None:
    telemetry.lookups_requests.add(1, "x" * 100_000, "\ud800")
    telemetry.lookups_requests.add(1, 'a"b\n{}', "")
    telemetry.num_chunks_loaded.add(4, 2**62, "m", "")
    assert values(telemetry, "lookups_requests") == {("?", "x" * 128): 1, ("", 'a"b\n{}'): 1}
    assert values(telemetry, "num_chunks_loaded") == {("", "m", str(2**62)): 4}


def test_wrong_number_of_labels_is_an_error(telemetry: Telemetry) -> None:
    with pytest.raises(TypeError, match=r"lmcache_mp\.registrations has the labels"):
        telemetry.registrations.add(1)


def test_two_servers_in_one_process_do_not_share_metrics(telemetry: Telemetry) -> None:
    other = Telemetry()
    other.l1_read_chunks.add(9)
    assert values(telemetry, "l1_read_chunks") == {("default",): 0}
    assert values(other, "l1_read_chunks") == {("default",): 9}
    other.close()


def test_disabled_metrics_can_be_recorded_and_export_nothing() -> None:
    telemetry = Telemetry(enabled=False)
    telemetry.l1_read_chunks.add(1)
    telemetry.request_latency.record(1, "lookup")
    telemetry.gauge_source("queue_depth", lambda: 1)
    telemetry.start()
    assert telemetry.render() == b""
    telemetry.close()


def test_the_page_is_the_same_whatever_otel_variables_are_inherited() -> None:
    """A platform sets them for everybody."""
    code = """
from sidecar.telemetry import Telemetry
telemetry = Telemetry(instance_id="me")
telemetry.l1_write_chunks.add(4)
telemetry.request_latency.record(0.01, "store")
print(telemetry.render().decode())
"""
    hostile = {
        "OTEL_SDK_DISABLED": "true",
        "OTEL_SERVICE_NAME": "another",
        "OTEL_RESOURCE_ATTRIBUTES": "team=x,service.version=9",
        "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS": "nonsense",
        "OTEL_METRICS_EXEMPLAR_FILTER": "always_on",
        "OTEL_ATTRIBUTE_COUNT_LIMIT": "0",
    }
    pages = [
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | more, check=True, stdout=subprocess.PIPE
        ).stdout
        for more in ({}, hostile)
    ]
    assert pages[0] == pages[1]
    assert b'lmcache_mp_l1_write_chunks_total{l1_tag="default"' in pages[0]
