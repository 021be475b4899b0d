"""What is recorded of a GPU's transfers."""

from __future__ import annotations

import pytest

from sidecar.engines.cuda.protocol import Moved
from sidecar.handlers.gpu_transfers import record_transfer
from sidecar.telemetry import Telemetry


def test_a_slow_copy_is_one_line_with_its_parts(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(enabled=False, otlp_endpoint="", instance_id="test")
    quick, waited = Moved(1, None, 0.0, 0.01), Moved(2, None, 20.0, 0.01)
    slow = Moved(3, None, 0.25, 2.0)
    for moved in (quick, waited, slow):
        record_transfer(telemetry, "GPU", "store", moved, 4 << 30)
    (line,) = caplog.messages
    assert line == (
        "slow store on GPU: 4096.0 MiB, 0.250 s for the worker's event, 2.000 s to copy: 2.15 GB/s"
    )
