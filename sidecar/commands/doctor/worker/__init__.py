"""A worker's command, held against the known traps."""

from collections.abc import Iterator

from sidecar.commands.doctor.finding import Finding, ok
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.commands.doctor.worker import (
    addresses,
    flags,
    native,
    transfer,
    variables,
    wrong_kv,
)
from sidecar.commands.doctor.worker.invocation import Invocation

CHECKS = (
    *wrong_kv.CHECKS,
    *transfer.CHECKS,
    *addresses.CHECKS,
    *native.CHECKS,
    *flags.CHECKS,
    *variables.CHECKS,
)


def check(worker: Invocation, around: Surroundings) -> Iterator[Finding]:
    """What is wrong with it, or one finding that says nothing is."""
    findings = [finding for each in CHECKS if (finding := each(worker, around))]
    yield from findings or [ok("worker", f"none of the {len(CHECKS)} known problems")]
    yield from wrong_kv.same_weights(worker)
