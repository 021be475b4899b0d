"""What is recorded of transfers with GPUs beside what all transfers have in common."""

import logging

from sidecar.engines.cuda.protocol import Moved
from sidecar.telemetry import Telemetry

log = logging.getLogger(__name__)

# Long for a copy: 10 GB at the speed of a PCIe 4 link.
_SLOW_SECONDS = 0.5


def record_transfer(
    telemetry: Telemetry, device: str, direction: str, moved: Moved, nbytes: int
) -> None:
    """A transfer of `nbytes` bytes (`direction` store or load) has ended well."""
    phases = {"event": moved.waited, "copy": moved.copied}
    for phase, seconds in phases.items():
        telemetry.gpu_transfer_phase.record(seconds, device, direction, phase)
    if moved.copied > _SLOW_SECONDS:
        log.warning(
            "slow %s on %s: %.1f MiB, %.3f s for the worker's event, %.3f s to copy: %.2f GB/s",
            direction, device, nbytes / 2**20, moved.waited, moved.copied,
            nbytes / moved.copied / 1e9,
        )  # fmt: skip
