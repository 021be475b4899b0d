"""Metrics pushed to a collector; needs the extra `otlp`."""

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import pytest

from sidecar.telemetry import Telemetry

grpc = pytest.importorskip("grpc")
pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
stubs = "opentelemetry.proto.collector.metrics.v1"
metrics_service_pb2 = pytest.importorskip(f"{stubs}.metrics_service_pb2")
metrics_service_pb2_grpc = pytest.importorskip(f"{stubs}.metrics_service_pb2_grpc")


@contextmanager
def collector(received: list[Any]) -> Iterator[str]:
    """An OTLP collector on a free port; its URL."""

    class Service(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            received.append(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(1))
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def test_otlp_pushes_counters_and_histograms_on_close() -> None:
    received: list[Any] = []
    with collector(received) as endpoint:
        telemetry = Telemetry(otlp_endpoint=endpoint, instance_id="pushed")
        telemetry.start()
        telemetry.lookup_hit_tokens.add(256, "m", "s")
        telemetry.request_latency.record(0.5, "lookup")
        telemetry.close()
    resource = received[-1].resource_metrics[0]
    assert {a.key: a.value.string_value for a in resource.resource.attributes}[
        "service.instance.id"
    ] == "pushed"
    metrics = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    assert metrics["lmcache_mp.lookup_hit"].unit == "tokens"
    assert metrics["lmcache_mp.lookup_hit"].sum.data_points[0].as_int == 256
    assert metrics["lmcache_mp.request_latency"].histogram.data_points[0].count == 1


def test_a_collector_that_is_gone_does_not_keep_the_server_from_ending() -> None:
    telemetry = Telemetry(otlp_endpoint="http://127.0.0.1:1")
    telemetry.start()
    telemetry.close()
