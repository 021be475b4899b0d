"""Traces of requests through the OpenTelemetry SDK, pushed by OTLP."""

import threading

from blake3 import blake3
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, Status, StatusCode, Tracer, set_span_in_context

from sidecar import __version__
from sidecar.telemetry.spans import NO_SPAN, Attribute, Span

_CLOSE_SECONDS = 2.0
# A lookup of a long prompt loads thousands of objects. What does not fit is dropped.
_QUEUED_SPANS = 16_384
_LIMITS = SpanLimits(max_span_attributes=32, max_span_attribute_length=256)


class Traces:
    """Begins the spans of the requests in the sample, a share of `ratio` (0 to 1)."""

    def __init__(self, ratio: float, endpoint: str, resource: Resource) -> None:
        self._ids = _RequestIds()
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=resource,
            id_generator=self._ids,
            span_limits=_LIMITS,
            # The server closes it, within a bound.
            shutdown_on_exit=False,
        )
        exporter = OTLPSpanExporter(endpoint=endpoint)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, _QUEUED_SPANS))
        self._tracer = self._provider.get_tracer("kv_sidecar", __version__)

    def begin(self, operation: str, request_id: str, attributes: dict[str, Attribute]) -> Span:
        """A span of its own in the request's trace. Loop thread only."""
        self._ids.request_id = request_id
        span = self._tracer.start_span(
            operation, Context(), SpanKind.SERVER, {"request_id": request_id, **attributes}
        )
        return _Recorded(self._tracer, span) if span.is_recording() else NO_SPAN

    def close(self) -> None:
        """Push what is left, for two seconds at most; the SDK itself would take 30."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


class _RequestIds(RandomIdGenerator):
    """Makes one trace of all that is done for a request, whichever of its workers asks for it.

    The protocol carries no trace context; the request's id is what its operations share.
    """

    request_id = ""

    def generate_trace_id(self) -> int:
        return int.from_bytes(blake3(self.request_id.encode("utf-8", "replace")).digest(16))


class _Recorded(Span):
    __slots__ = ("_span", "_tracer")

    def __init__(self, tracer: Tracer, span: OtelSpan) -> None:
        self._tracer = tracer
        self._span = span

    def child(self, name: str, **attributes: Attribute) -> Span:
        parent = set_span_in_context(self._span, Context())
        return _Recorded(self._tracer, self._tracer.start_span(name, parent, attributes=attributes))

    def set(self, **attributes: Attribute) -> None:
        if self._span.is_recording():
            self._span.set_attributes(attributes)

    def end(self, error: str = "") -> None:
        if self._span.is_recording():
            if error:
                self._span.set_status(Status(StatusCode.ERROR, error))
            self._span.end()
