"""Step 10. What the link gives, what pinning takes, and batches by the length of runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.gpu import batches, pinning, plain
from bench.gpu.expected import (
    BOTH_TIMES_ONE,
    LONG_RUN_KIB,
    LONG_RUN_SHARE,
    MEDIUM_RUN_KIB,
    MEDIUM_RUN_SHARE,
)
from bench.gpu.findings import Finding
from bench.gpu.sweep import calibrated, sweep_of
from sidecar.cache.arena import PIECE_BYTES
from tests.gpu.quick.gpu import BATCHES, MIB, SMALL, Gpu
from tests.gpu.quick.report import Report

_KIB, _COUNTS = ((4, 64), (64,)) if SMALL else ((4, 16, 28, 64), (1024, 10_000))
_SHARES = {LONG_RUN_KIB: LONG_RUN_SHARE, MEDIUM_RUN_KIB: MEDIUM_RUN_SHARE}
_LINK_BYTES, _PINNED_PIECES, _CALLS = (MIB, 1, 3) if SMALL else (256 * MIB, 16, 500)


def run(report: Report) -> None:
    gpu = Gpu()
    link = plain.measure(gpu, gpu.about, _LINK_BYTES)
    _figures(report, link)
    plainly = {finding.key: finding.value or 0.0 for finding in link}
    one = max(plainly["link_store"], plainly["link_load"])
    times = plainly["link_both"] / one
    report.figure("both at once, of one", times, "times", at_least=BOTH_TIMES_ONE)
    pieces = pinning.pin(gpu, pinning.tmpfs(_PINNED_PIECES * PIECE_BYTES))
    seconds = sum(piece.end - piece.start for piece in pieces)
    gigabytes = _PINNED_PIECES * PIECE_BYTES / 1e9
    report.figure("pin resident tmpfs", seconds / gigabytes, "s/GB", at_most=0.1)
    if BATCHES:
        _figures(report, batches.measure(gpu, gpu.about, _CALLS))
    for row in sweep_of(gpu, _KIB, _COUNTS, max(_KIB) * 1024 * max(_COUNTS)):
        if "run_kib" in row:
            _row(report, row, plainly[f"link_{row['direction']}"])
    for found in calibrated(gpu):
        what = f"runs are staged for {found['calibrated']}s below"
        report.figure(what, found["staged_under_kib"], "KiB")


def _row(report: Report, row: dict[str, Any], link: float) -> None:
    """Both ways; of the better one what it is of a plain copy, too."""
    what = f"{row['direction']} {row['runs']} runs of {row['run_kib']} KiB"
    name = "in batches" if BATCHES else "one by one"
    report.figure(f"{what}, {name}", row["batches"], "GB/s")
    report.figure(f"{what}, staged", row["staged"], "GB/s")
    if row["runs"] == max(_COUNTS):
        share = max(row["batches"], row["staged"]) / link
        report.figure(f"{what}, of a plain copy", share, "", at_least=_SHARES.get(row["run_kib"]))


def _figures(report: Report, found: Iterable[Finding]) -> None:
    for finding in found:
        verdict = "skipped" if finding.value is None else finding.verdict
        report.write(
            what=finding.expected.what, measured=finding.measured,
            expected=finding.expected.target.text(), verdict=verdict, note=finding.note,
        )  # fmt: skip
