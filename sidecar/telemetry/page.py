"""The page that a Prometheus server reads, made of the instruments themselves.

Not by way of OpenTelemetry's SDK, whose page inherited variables (OTEL_*) empty or change. Names
and labels are those that its exporter would give.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from sidecar import __version__
from sidecar.telemetry.instruments import Counter, Description, Distribution, Gauge, Histogram
from sidecar.telemetry.table import Instruments

log = logging.getLogger(__name__)

# Of the units that instruments are declared with, those that are spelt otherwise.
_UNITS = {"s": "seconds", "By": "bytes", "GB/s": "GB_per_second"}
_SCOPE = {
    "otel_scope_name": "kv_sidecar",
    "otel_scope_version": __version__,
    "otel_scope_schema_url": "",
}


class Page:
    """All instruments, read when the page is asked for."""

    def __init__(self, instruments: Instruments, instance_id: str) -> None:
        self._instruments = instruments
        self._target = {
            "service_name": "kv-sidecar",
            "service_version": __version__,
            "service_instance_id": instance_id,
        }
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def render(self) -> bytes:
        """In the Prometheus text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        target = GaugeMetricFamily("target_info", "Target metadata", labels=[*self._target])
        target.add_metric([*self._target.values()], 1)
        yield target
        yield from map(_counter, self._instruments.counters)
        yield from map(_gauge, self._instruments.gauges.values())
        yield from map(_histogram, self._instruments.histograms)


def _counter(counter: Counter) -> Metric:
    name, text, unit, labels = _about(counter.description)
    family = CounterMetricFamily(name, text, labels=labels, unit=unit)
    for series, cell in counter.series():
        family.add_metric(_values(series), cell.value)
    return family


def _gauge(gauge: Gauge) -> Metric:
    name, text, unit, labels = _about(gauge.description)
    family = GaugeMetricFamily(name, text, labels=labels, unit=unit)
    try:
        for series, value in gauge.series():
            family.add_metric(_values(series), value)
    except Exception:  # a source is the code of others, and the rest of the page is not its own
        log.exception("the gauge %s has no value", name)
    return family


def _histogram(histogram: Histogram) -> Metric:
    name, text, unit, labels = _about(histogram.description)
    family = HistogramMetricFamily(name, text, labels=labels, unit=unit)
    for series, cell in histogram.series():
        family.add_metric(_values(series), [*_buckets(histogram.bounds, cell)], cell.total)
    return family


def _buckets(bounds: Iterable[float], cell: Distribution) -> Iterator[tuple[str, float]]:
    below = 0
    for bound, count in zip((*bounds, "+Inf"), cell.counts.copy(), strict=True):
        below += count
        yield str(bound), below


def _about(description: Description) -> tuple[str, str, str, list[str]]:
    """Name, text, unit, and names of labels."""
    labels = [*_SCOPE, *description.attributes(("",) * len(description.labels))]
    unit = _UNITS.get(description.unit, description.unit)
    return description.name.replace(".", "_"), description.text, unit, labels


def _values(series: Mapping[str, str]) -> list[str]:
    return [*_SCOPE.values(), *series.values()]
