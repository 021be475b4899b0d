"""Metrics and traces pushed to a collector; needs the extra `otlp`."""

import subprocess
import sys

import pytest

from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import NO_SPAN
from tests.support.otlp import attributes, collector


def test_otlp_pushes_counters_and_histograms_on_close() -> None:
    with collector() as received:
        telemetry = Telemetry(otlp_endpoint=received.url, instance_id="pushed")
        telemetry.start()
        telemetry.lookup_hit_tokens.add(256, "m", "s")
        telemetry.request_latency.record(0.5, "lookup")
        telemetry.close()
    resource = received.metrics[-1].resource_metrics[0]
    assert attributes(resource.resource)["service.instance.id"] == "pushed"
    metrics = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    assert metrics["lmcache_mp.lookup_hit"].unit == "tokens"
    assert metrics["lmcache_mp.lookup_hit"].sum.data_points[0].as_int == 256
    assert metrics["lmcache_mp.request_latency"].histogram.data_points[0].count == 1
    assert received.spans() == []


def test_steps_of_one_request_are_one_trace() -> None:
    with collector() as received:
        telemetry = Telemetry(otlp_endpoint=received.url, trace_ratio=1.0)
        telemetry.start()
        lookup = telemetry.begin_span("lookup", "request-1", chunks=3)
        load = lookup.child("l2_load", l2_name="disk")
        lookup.set(hit_chunks=2)
        lookup.end()
        load.end("timeout")
        lookup.end("once more is nothing")
        lookup.set(hit_chunks=3)
        telemetry.begin_span("retrieve", "request-1").end()
        telemetry.begin_span("retrieve", "request-2").end()
        telemetry.close()
    spans = {(span.name, attributes(span).get("request_id")): span for span in received.spans()}
    parent, child = spans["lookup", "request-1"], spans["l2_load", None]
    assert len(spans) == 4
    assert attributes(parent) == {"request_id": "request-1", "chunks": 3, "hit_chunks": 2}
    assert child.parent_span_id == parent.span_id
    assert (child.status.message, parent.status.message) == ("timeout", "")
    assert spans["retrieve", "request-1"].trace_id == child.trace_id == parent.trace_id
    assert spans["retrieve", "request-2"].trace_id != parent.trace_id
    assert not spans["retrieve", "request-1"].parent_span_id


def test_a_request_is_in_the_sample_with_all_of_its_steps_or_not_at_all() -> None:
    steps = ("lookup", "retrieve", "store")
    with collector() as received:
        telemetry = Telemetry(otlp_endpoint=received.url, trace_ratio=0.25)
        telemetry.start()
        for number in range(400):
            for step in steps:
                telemetry.begin_span(step, f"request-{number}").end()
        telemetry.close()
    sampled: dict[str, list[str]] = {}
    for span in received.spans():
        sampled.setdefault(attributes(span)["request_id"], []).append(span.name)
    assert 50 < len(sampled) < 150  # the draw is a hash: always the same requests
    assert all(tuple(sorted(names)) == steps for names in sampled.values())


def test_without_a_collector_nothing_is_traced_or_imported() -> None:
    telemetry = Telemetry()
    telemetry.start()
    assert telemetry.begin_span("lookup", "r").child("l2_load") is NO_SPAN
    telemetry.close()
    code = "import sys, sidecar.telemetry as t; t.Telemetry().start(); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"opentelemetry", "grpc"} & {name.partition(".")[0] for name in run.stdout.split()}


def test_a_collector_that_is_gone_does_not_keep_the_server_from_ending() -> None:
    code = """
from sidecar.telemetry import Telemetry
telemetry = Telemetry(otlp_endpoint="http://127.0.0.1:1", trace_ratio=1.0)
telemetry.start()
telemetry.begin_span("lookup", "r").end()
telemetry.close()
"""
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True, capture_output=True)


def test_the_sdks_own_switch_turns_the_push_off_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "True")
    telemetry = Telemetry(otlp_endpoint="http://127.0.0.1:1", trace_ratio=1.0)
    telemetry.start()
    assert telemetry.begin_span("lookup", "r") is NO_SPAN
    assert b"lmcache_mp_lookups_requests_total" in telemetry.render()
    assert "nothing is pushed to http://127.0.0.1:1: OTEL_SDK_DISABLED is true" in caplog.text
    telemetry.close()
