"""The object that the rest of the server records into and exports from."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.telemetry.spans import NO_SPAN, Attribute, Span
from sidecar.telemetry.table import Instruments

if TYPE_CHECKING:
    from sidecar.telemetry.pipeline import Pipeline
    from sidecar.telemetry.traces import Traces


class Telemetry(Instruments):
    """All instruments and their export. Recording is for one thread, the rest for any."""

    def __init__(
        self, *, enabled: bool = True, otlp_endpoint: str = "", instance_id: str = "",
        trace_ratio: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.enabled = enabled
        self._otlp_endpoint = otlp_endpoint
        self._instance_id = instance_id
        self._trace_ratio = trace_ratio
        self._lock = threading.Lock()
        self._pipeline: Pipeline | None = None
        self._traces: Traces | None = None

    def gauge_source(self, name: str, source: Callable[[], float], *labels: str) -> None:
        """Let the gauge ``name`` be what ``source`` returns on the exporting thread.

        Raises:
            KeyError: no gauge has this name.
        """
        self.gauges[name].observe(source, *labels)

    def start(self) -> None:
        """Begin to export. Imports OpenTelemetry (0.1 s), so not for the wire thread."""
        with self._lock:
            if self.enabled and self._pipeline is None:
                from sidecar.telemetry.pipeline import Pipeline, resource

                about = resource(self._instance_id)
                self._pipeline = Pipeline(self, self._otlp_endpoint, about)
                if self._trace_ratio:
                    from sidecar.telemetry.traces import Traces

                    self._traces = Traces(self._trace_ratio, self._otlp_endpoint, about)

    def begin_span(self, operation: str, request_id: str, **attributes: Attribute) -> Span:
        """A step of a request. Loop thread only."""
        traces = self._traces
        return traces.begin(operation, request_id, attributes) if traces else NO_SPAN

    def render(self) -> bytes:
        """All metrics in the Prometheus text format; nothing if they are disabled."""
        self.start()
        with self._lock:
            return self._pipeline.render() if self._pipeline else b""

    def close(self) -> None:
        """Push what is left to the collector, for a bounded time, and stop."""
        with self._lock:
            if self._traces:
                self._traces.close()
                self._traces = None
            if self._pipeline:
                self._pipeline.close()
                self._pipeline = None
                self.enabled = False
