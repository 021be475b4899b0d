"""`python -m bench.gpu`: every figure of the GPU path beside what it should be."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench import report
from bench.common import BenchError
from bench.gpu import checks, findings, requests
from bench.gpu.shapes import MODELS, RUNS
from sidecar.engines.cuda.libcuda import LibCuda

L1_GB = 12
PARTS = ("sweep", *checks.PARTS, "requests")


def main(arguments: Sequence[str] | None = None) -> int:
    """0, 1 if a part could not be measured, or 2 if nothing can be measured here."""
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.gpu needs an NVIDIA GPU and a CUDA build of torch", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="kv-bench-") as logs:
        run = Run(options, Path(logs))
        run.measure()
    _report(run)
    return 1 if run.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="runs of one length only, one client")
    parser.add_argument("--sweep", action="store_true", help="only batches against staging")
    parser.add_argument("--checks", action="store_true", help="only the checks of docs/gpu.md")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="only these parts")
    parser.add_argument("--l1-gb", type=int, default=L1_GB, help="L1 of the servers, in GiB")
    parser.add_argument("--server", choices=("ours", "peer", "both"), default="both")
    parser.add_argument("--output", default="bench-results", help="folder for the JSON")
    return parser


class Run:
    """What was found, part by part; a part that fails takes nothing from the others."""

    def __init__(self, options: argparse.Namespace, logs: Path) -> None:
        self.sweep: list[dict[str, Any]] = []
        self.findings: list[findings.Finding] = []
        self.rows: list[requests.Row] = []
        self.failed: list[str] = []
        self._options, self._logs = options, logs
        self.date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%SZ")
        self.target = Path(options.output) / f"gpu-{self.date}.json"

    def measure(self) -> None:
        """All that was asked for, each figure printed when it is there."""
        wanted = _wanted(self._options)
        if "sweep" in wanted:
            # It prints its rows itself: it takes minutes, in a process of its own.
            rows = partial(checks.in_a_process, checks.sweep_rows)
            self._part("sweep", rows, self.sweep)
            compare = partial(checks.of_sweep, self.sweep)
            self._part("sweep", compare, self.findings, findings.line)
        for name, part in checks.parts(self._options.l1_gb, self._logs).items():
            if name in wanted:
                self._part(name, part, self.findings, findings.line)
        if "requests" in wanted:
            self._part("requests", self._requests, self.rows, requests.line)

    def write(self) -> None:
        """What there is so far, as JSON."""
        document = {
            "date": self.date,
            "machine": report.machine(),
            "gpu": torch.cuda.get_device_name(0),
            "sweep": self.sweep,
            "checks": [findings.as_json(finding) for finding in self.findings],
            "rows": self.rows,
            "failed": self.failed,
        }
        self.target.parent.mkdir(exist_ok=True)
        self.target.write_text(json.dumps(document, indent=1))

    def _part(
        self,
        name: str,
        part: Callable[[], Iterable[Any]],
        to: list[Any],
        text: Callable[[Any], str] | None = None,
    ) -> None:
        try:
            for found in part():
                to.append(found)
                if text is not None:
                    print(text(found), flush=True)
        except Exception as error:
            kind = "" if isinstance(error, BenchError) else f"{type(error).__name__}: "
            self.failed.append(f"{name}: {kind}{error}")
            print(f"FAILED  {self.failed[-1]}", flush=True)
        self.write()

    def _requests(self) -> Iterable[requests.Row]:
        driver = LibCuda()
        driver.open("true")
        server, quick = self._options.server, self._options.quick
        names = ("ours", "peer") if server == "both" else (server,)
        shapes, clients = (RUNS, (1,)) if quick else (RUNS + MODELS, (1, 4))
        return requests.measure(driver, names, shapes, clients, self._options.l1_gb, self._logs)


def _wanted(options: argparse.Namespace) -> Sequence[str]:
    """The parts that were asked for."""
    if options.parts:
        parts: list[str] = options.parts
        return parts
    if options.sweep or options.checks:
        return ("sweep",) * options.sweep + checks.PARTS * options.checks
    return PARTS


def _report(run: Run) -> None:
    """The summary that docs/understand.md has room for."""
    title = f"\n{torch.cuda.get_device_name(0)}, {report.machine()['cpu']}, {run.date[:10]}"
    print(title, *_tables(run), sep="\n\n", end="\n\n")
    print(f"written: {run.target}", file=sys.stderr)


def _tables(run: Run) -> Iterable[str]:
    if run.findings:
        yield findings.markdown(run.findings)
    if run.rows:
        yield requests.markdown(run.rows)
    if run.failed:
        yield "Not measured: " + "; ".join(run.failed)
