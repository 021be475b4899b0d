"""The instruments through the OpenTelemetry SDK, pushed by OTLP."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricsData,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.resources import Resource

from sidecar import __version__
from sidecar.telemetry.instruments import Counter, Distribution, Gauge, Histogram
from sidecar.telemetry.table import Instruments

_CLOSE_MILLISECONDS = 2000
_Callback = Callable[[CallbackOptions], Iterable[Observation]]


def resource(instance_id: str) -> Resource:
    """Who it is that exports."""
    return Resource.create(
        {
            "service.name": "kv-sidecar",
            "service.version": __version__,
            "service.instance.id": instance_id,
        }
    )


class Pipeline:
    """A meter provider that reads the instruments, and pushes them once a minute."""

    def __init__(self, instruments: Instruments, otlp_endpoint: str, resource: Resource) -> None:
        source = _HistogramSource(instruments.histograms)
        reader = _PushReader(source, OTLPMetricExporter(endpoint=otlp_endpoint))
        self._provider = MeterProvider(
            metric_readers=[reader],
            resource=resource,
            exemplar_filter=AlwaysOffExemplarFilter(),
            # The server closes it, within a bound.
            shutdown_on_exit=False,
        )
        meter = self._provider.get_meter("kv_sidecar", __version__)
        for counter in instruments.counters:
            _observe_counter(meter, counter)
        for gauge in instruments.gauges.values():
            _observe_gauge(meter, gauge)

    def close(self) -> None:
        """Push once more and stop, within two seconds."""
        self._provider.shutdown(timeout_millis=_CLOSE_MILLISECONDS)


def _observe_counter(meter: Meter, counter: Counter) -> None:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(cell.value, labels) for labels, cell in counter.series()]

    about = counter.description
    meter.create_observable_counter(about.name, [read], about.unit, about.text)


def _observe_gauge(meter: Meter, gauge: Gauge) -> None:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(value, labels) for labels, value in gauge.series()]

    about = gauge.description
    meter.create_observable_gauge(about.name, [read], about.unit, about.text)


class _HistogramSource:
    """Adds our histograms to what the SDK collected, which knows no observable histogram."""

    def __init__(self, histograms: Iterable[Histogram]) -> None:
        self._histograms = list(histograms)
        self._started = time.time_ns()

    def added_to(self, collected: MetricsData) -> MetricsData:
        """A copy of ``collected`` with the histograms in its first (and only) scope."""
        now = time.time_ns()
        resource = collected.resource_metrics[0]
        scope = resource.scope_metrics[0]
        metrics = [*scope.metrics, *(self._metric(h, now) for h in self._histograms)]
        scope = dataclasses.replace(scope, metrics=metrics)
        return MetricsData([dataclasses.replace(resource, scope_metrics=[scope])])

    def _metric(self, histogram: Histogram, now: int) -> Metric:
        points = [
            self._point(labels, cell, histogram.bounds, now) for labels, cell in histogram.series()
        ]
        about = histogram.description
        data = HistogramData(points, AggregationTemporality.CUMULATIVE)
        return Metric(about.name, about.text, about.unit, data)

    def _point(
        self, labels: dict[str, str], cell: Distribution, bounds: Iterable[float], now: int
    ) -> HistogramDataPoint:
        counts = cell.counts.copy()
        return HistogramDataPoint(
            attributes=labels,
            start_time_unix_nano=self._started,
            time_unix_nano=now,
            count=sum(counts),
            sum=cell.total,
            bucket_counts=counts,
            explicit_bounds=tuple(bounds),
            min=cell.smallest,
            max=cell.largest,
        )


class _PushReader(PeriodicExportingMetricReader):
    def __init__(self, source: _HistogramSource, exporter: Any) -> None:
        super().__init__(exporter)
        self._source = source

    def _receive_metrics(
        self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any
    ) -> None:
        super()._receive_metrics(self._source.added_to(metrics_data), timeout_millis, **kwargs)
