"""Metrics and traces: cheap to record, exported through OpenTelemetry."""

from sidecar.telemetry.telemetry import Telemetry

__all__ = ["Telemetry"]
