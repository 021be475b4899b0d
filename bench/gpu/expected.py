"""What the checks of the GPU path should measure on an H100 with PCIe 5.

`source` names who has published such a figure; "target" is what we want of ourselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.figures import Target

TARGET = "target"
_RECORDED = Target()
# GB/s from host to device in one batch, by runs of KiB; a tenth less is as good.
_BATCHES = "vLLM PR#42212, less a tenth"
_PUBLISHED = {
    10_000: {4: 6.8, 16: 7.1, 24: 25.8, 28: 27.5, 64: 38.8},
    50_000: {4: 4.0, 16: 6.3, 24: 6.7, 28: 39.9, 64: 51.4},
}
STAGED_KIB, STAGED_RUNS = (4, 8, 16), 10_000

# Of the plain copy in the same run, by the length of runs; both directions of the better one.
LONG_RUN_KIB, LONG_RUN_SHARE = 64, 0.92
MEDIUM_RUN_KIB, MEDIUM_RUN_SHARE = 16, 0.85
BOTH_TIMES_ONE = 1.6


@dataclass(frozen=True)
class Expected:
    """A figure of check number `check`; a `target` without bounds is only recorded."""

    check: int
    what: str
    unit: str
    target: Target = _RECORDED
    source: str = TARGET


def _rate(check: int, what: str, at_least: float | None = None, source: str = TARGET) -> Expected:
    return Expected(check, what, "GB/s", Target(at_least=at_least), source)


def _most(check: int, what: str, unit: str, at_most: float, source: str = TARGET) -> Expected:
    return Expected(check, what, unit, Target(at_most=at_most), source)


def _cost(what: str) -> dict[str, Expected]:
    """What inference suffers of transfers, slow and as fast as they go."""
    kernel = "target (PEGA#408: copy engines +4.6 %, a kernel without bounds +47 %)"
    beside = f"decode beside {what} runs"
    slow, full = f"{beside} at 2.5 GiB/s", f"{beside} at full speed"
    return {
        f"{what}_slow_p50": Expected(10, f"{slow}, p50", "%"),
        f"{what}_slow_p99": _most(10, f"{slow}, p99", "%", 5, kernel),
        f"{what}_full_p50": Expected(10, f"{full}, p50", "%"),
        f"{what}_full_p99": Expected(10, f"{full}, p99", "%"),
    }


FIGURES: dict[str, Expected] = {
    "context": _most(3, "GPU memory of the child with one small worker", "MiB", 650, "LMC#4019"),
    "link_store": _rate(4, "256 MiB of pinned memory, from the GPU", 52),
    "link_load": _rate(4, "256 MiB of pinned memory, to the GPU", 52),
    "link_both": _rate(4, "256 MiB of pinned memory, both at once", 85),
    "far_store": _rate(4, "the same on another NUMA node, from the GPU"),
    "far_load": _rate(4, "the same on another NUMA node, to the GPU"),
    "pin_piece": _most(5, "pin 64 MiB of resident tmpfs, median", "ms", 15),
    "pin_gigabyte": _most(5, "pin resident tmpfs", "s/GB", 0.1, "vLLM#51080"),
    "pin_stall": _most(
        5, "longest step of decode while memory is pinned, less the median", "ms", 20
    ),
    **{
        f"batches_{kib}_{runs}": _rate(
            7, f"{runs:,} runs of {kib} KiB to the GPU, batches of 4096", 0.9 * rate, _BATCHES
        )
        for runs, rates in _PUBLISHED.items()
        for kib, rate in rates.items()
    },
    "batch_call": _most(8, "CPU time of a call with 4096 copies, mean", "ms", 1.5),
    "tp8_load_idle": _rate(9, "load of 512 MiB, Llama TP8, idle GPU", 45),
    "tp8_load_busy": _rate(9, "load of 512 MiB, Llama TP8, beside prefill", 35),
    "tp8_store_idle": _rate(9, "store of 512 MiB, Llama TP8, idle GPU"),
    "tp8_store_busy": _rate(9, "store of 512 MiB, Llama TP8, beside prefill"),
    **{
        f"staged_{kib}": _rate(10, f"{STAGED_RUNS:,} runs of {kib} KiB to the GPU, staged", 30)
        for kib in STAGED_KIB
    },
    **_cost("short"),
    **_cost("long"),
    "event_p50": _most(11, "a worker's event until another process sees it, p50", "us", 50),
    "event_p99": _most(11, "a worker's event until another process sees it, p99", "us", 500),
    "dead": _most(12, "a worker killed in stores: unmapped, GPU memory back", "s", 5),
    "stuck": _most(13, "a worker killed before its event: unmapped, GPU memory back", "s", 10),
    "replaced": _most(14, "the child killed: a worker registered anew has stored", "s", 30),
}
