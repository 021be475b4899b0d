"""The object that the rest of the server records into and exports from."""

import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sidecar.telemetry.spans import NO_SPAN, Attribute, Span
from sidecar.telemetry.table import Instruments

if TYPE_CHECKING:
    from sidecar.telemetry.page import Page
    from sidecar.telemetry.pipeline import Pipeline
    from sidecar.telemetry.traces import Traces

log = logging.getLogger(__name__)

_OFF = "OTEL_SDK_DISABLED"


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
        self._page: Page | None = None
        self._pipeline: Pipeline | None = None
        self._traces: Traces | None = None

    def gauge_source(self, name: str, source: Callable[[], float], *labels: str) -> None:
        """Let the gauge ``name`` be what ``source`` returns on the exporting thread.

        Raises:
            KeyError: no gauge has this name.
        """
        self.gauges[name].observe(source, *labels)

    def start(self) -> None:
        """Begin to export. Imports OpenTelemetry if it pushes (0.5 s): not for the wire thread."""
        with self._lock:
            if not self.enabled or self._page:
                return
            from sidecar.telemetry.page import Page

            self._page = Page(self, self._instance_id)
            if self._otlp_endpoint and os.environ.get(_OFF, "").strip().lower() == "true":
                log.warning("nothing is pushed to %s: %s is true", self._otlp_endpoint, _OFF)
            elif self._otlp_endpoint:
                self._start_push()

    def _start_push(self) -> None:
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
        page = self._page
        return page.render() if page and self.enabled else b""

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
