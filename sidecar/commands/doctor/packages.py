"""The versions in this environment, against what `connectors.versions` knows of them."""

from collections.abc import Collection, Iterator

from connectors.versions import (
    GATES,
    Gate,
    Installed,
    Need,
    Package,
    meets,
    remedy,
    with_device,
)
from sidecar.commands.doctor.finding import Finding, ok, problem, warning

_PACKAGES: tuple[Package, ...] = ("vllm", "lmcache", "nixl", "ai-dynamo")


def check(installed: Installed, needs: Collection[Need], named: bool) -> Iterator[Finding]:
    """Each package, then what does not fit.

    `needs` are those of the worker; `named` if its command was given, rather than assumed.
    """
    for package in _PACKAGES:
        yield found(package, installed)
    if not installed["vllm"]:
        if named:
            yield no_worker_here()
        return
    needed = with_device(needs, installed)
    for gate in GATES:
        finding = fits(gate, installed, needed)
        if finding:
            yield finding


def found(package: Package, installed: Installed) -> Finding:
    """What is there; whether it is missed, the gates say."""
    return ok(package, installed[package] or "not in this environment")


def no_worker_here() -> Finding:
    return warning(
        "vllm",
        "a worker's command was given, but vLLM is not in this environment",
        "the worker's versions cannot be checked from here",
        "install kv-sidecar in the worker's environment, and run its doctor there",
    )


def fits(gate: Gate, installed: Installed, needs: Collection[Need]) -> Finding | None:
    """A problem if the worker needs it; else a warning about a package too old to do it."""
    have = installed[gate.package]
    if meets(have, gate.since):
        return None
    if not have:
        what, why = "not in this environment", f"{gate.need} needs it"
    else:
        what, why = f"{have}: cannot do {gate.need}", gate.reason
    if gate.need in needs:
        return problem(gate.package, what, why, remedy(gate))
    return warning(gate.package, what, why, remedy(gate)) if have else None
