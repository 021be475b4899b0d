"""Variables of OpenTelemetry's SDK that change what is pushed to --otlp-endpoint."""

from sidecar.commands.doctor.finding import Finding, ok, warning
from sidecar.commands.doctor.surroundings import Surroundings

_OFF = "OTEL_SDK_DISABLED"
# What the exporters, readers, resources and span processors of the SDK read. What our own code
# says takes the place of others, such as OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER.
_HEEDED = (
    "OTEL_EXPORTER_OTLP_", "OTEL_METRIC_EXPORT_", "OTEL_BSP_", "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", _OFF,
)  # fmt: skip
_CHECK = "OpenTelemetry"


def check(around: Surroundings) -> Finding:
    """Names alone: headers hold secrets."""
    endpoint = around.config.otlp_endpoint
    if not endpoint:
        return ok(_CHECK, "nothing is pushed, and OTEL_* variables change nothing")
    if around.environ.get(_OFF, "").strip().lower() == "true":
        return warning(
            _CHECK,
            f"{_OFF} is true",
            "metrics and traces are not pushed; /metrics is served all the same",
            f"env -u {_OFF} kv-sidecar serve ..., or leave --otlp-endpoint out",
        )
    heeded = [name for name in sorted(around.environ) if name.startswith(_HEEDED)]
    return ok(_CHECK, f"push to --otlp-endpoint; in effect: {', '.join(heeded) or 'no variable'}")
