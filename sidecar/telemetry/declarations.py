"""How an instrument is declared: kept in lists for the exporters, and in groups for people."""

from collections.abc import Mapping

from sidecar.telemetry.instruments import Counter, Description, Gauge, Histogram


class Declarations:
    """The counters and histograms in lists, the gauges by name; `groups` by heading."""

    def __init__(self) -> None:
        self.counters: list[Counter] = []
        self.histograms: list[Histogram] = []
        self.gauges: dict[str, Gauge] = {}
        self.groups: dict[str, list[Counter | Histogram | Gauge]] = {}

    def _begin_group(self, heading: str) -> None:
        """What is declared from now on is listed under `heading`."""
        self._group = self.groups[heading] = []

    def _counter(
        self,
        name: str,
        unit: str,
        text: str,
        labels: tuple[str, ...] = (),
        fixed: Mapping[str, str] | None = None,
    ) -> Counter:
        counter = Counter(Description(f"lmcache_mp.{name}", unit, text, labels, fixed or {}))
        self.counters.append(counter)
        self._group.append(counter)
        return counter

    def _histogram(
        self,
        name: str,
        unit: str,
        text: str,
        bounds: tuple[float, ...],
        labels: tuple[str, ...] = (),
        fixed: Mapping[str, str] | None = None,
    ) -> Histogram:
        description = Description(f"lmcache_mp.{name}", unit, text, labels, fixed or {})
        histogram = Histogram(description, bounds)
        self.histograms.append(histogram)
        self._group.append(histogram)
        return histogram

    def _gauge(
        self,
        name: str,
        text: str,
        fixed: Mapping[str, str] | None = None,
        labels: tuple[str, ...] = (),
    ) -> None:
        description = Description(f"lmcache_mp.{name}", "", text, labels, fixed or {})
        self.gauges[name] = gauge = Gauge(description)
        self._group.append(gauge)
