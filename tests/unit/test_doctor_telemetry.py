"""`kv-sidecar doctor`: variables of OpenTelemetry that change what is pushed."""

from sidecar.commands.doctor.telemetry import check
from tests.support.doctor import around

ENVIRON = {"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_HEADERS": "key=secret"}
PUSHES = ("--otlp-endpoint", "http://collector:4317")


def test_variables_that_matter_are_named_without_their_values() -> None:
    finding = check(around(*PUSHES, environ=ENVIRON))
    assert (finding.level, finding.what) == (
        "ok",
        "push to --otlp-endpoint; in effect: OTEL_EXPORTER_OTLP_HEADERS",
    )
    assert check(around(*PUSHES)).what == "push to --otlp-endpoint; in effect: no variable"


def test_the_switch_that_turns_the_push_off() -> None:
    off = {**ENVIRON, "OTEL_SDK_DISABLED": "true"}
    assert check(around(*PUSHES, environ=off)).level == "warning"
    assert check(around(environ=off)).what == (
        "nothing is pushed, and OTEL_* variables change nothing"
    )
