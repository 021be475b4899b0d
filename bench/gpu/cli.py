"""`python -m bench.gpu`: this server and the peer's beside plain copies, one table."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from bench import report, servers
from bench.gpu import plain, transfers
from bench.gpu.shapes import MODELS, RUNS, Shape
from bench.gpu.sums import sums
from bench.gpu.sweep import sweep
from sidecar.engines.cuda.libcuda import LibCuda

L1_GB = 12
# Shares of the plain copy, by length of run in KiB; both directions against the better one.
_LONG_RUN, _LONG_SHARE, _MEDIUM_RUN, _MEDIUM_SHARE, _BOTH = 64, 0.92, 16, 0.85, 1.6


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if not torch.cuda.is_available():
        print("bench.gpu needs an NVIDIA GPU and a CUDA build of torch", file=sys.stderr)
        return 2
    rows = []
    if options.sweep:
        driver = LibCuda()
        for row in chain(sweep(driver), sums(driver)):
            print(json.dumps(row), flush=True)
        return 0
    with tempfile.TemporaryDirectory(prefix="kv-bench-") as logs:
        for row in _measure(options.server, options.quick, Path(logs)):
            rows.append(row)
            print(_text(row), flush=True)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%SZ")
    about = {"machine": report.machine(), "gpu": torch.cuda.get_device_name(0)}
    target = Path(options.output) / f"gpu-{date}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"date": date, **about, "rows": rows}, indent=1))
    print(f"\n{about['gpu']}; written: {target}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="runs of one length only, one client")
    parser.add_argument(
        "--sweep", action="store_true", help="batches, staging, checksums; no server"
    )
    parser.add_argument("--server", choices=("ours", "peer", "both"), default="both")
    parser.add_argument("--output", default="bench-results", help="folder for the JSON")
    return parser


def _measure(server: str, quick: bool, logs: Path) -> Iterator[dict[str, Any]]:
    """A row for each shape, number of clients and direction; GB/s."""
    names = ("peer", "ours") if server == "both" else (server,)
    for shape in RUNS if quick else RUNS + MODELS:
        reference = plain.rates(shape.nbytes, repeats=10)
        for clients in (1,) if quick else (1, 2, 4):
            found = {name: _one_server(name, shape, clients, logs) for name in names}
            for phase in ("store", "load", "both")[: 2 if clients == 1 else 3]:
                rates = {name: rates[phase] for name, rates in found.items()}
                ours = found.get("ours")
                reached = None if ours is None else _reached(shape, phase, ours, reference)
                row = {"shape": shape.name, "clients": clients, "phase": phase}
                yield row | {"plain": reference[phase], **rates, "reached": reached}


def _one_server(name: str, shape: Shape, clients: int, logs: Path) -> plain.Rates:
    with servers.running(name, L1_GB, logs) as server:
        server.wait_populated()
        return transfers.rates(server.url, shape, clients, repeats=2 if clients > 1 else 5)


def _reached(shape: Shape, phase: str, ours: plain.Rates, reference: plain.Rates) -> bool | None:
    """Whether a target is reached; None where there is none."""
    if phase == "both":
        return ours["both"] >= _BOTH * max(ours["store"], ours["load"])
    if shape.run_kib >= _LONG_RUN:
        return ours[phase] >= _LONG_SHARE * reference[phase]
    if shape.run_kib == _MEDIUM_RUN:
        return ours[phase] >= _MEDIUM_SHARE * reference[phase]
    return None


def _text(row: dict[str, Any]) -> str:
    rates = "  ".join(
        f"{name} {row[name]:6.1f} GB/s" for name in ("plain", "peer", "ours") if name in row
    )
    verdict = {True: "reached", False: "NOT REACHED", None: ""}[row["reached"]]
    return f"{row['shape']:18} {row['clients']} worker(s)  {row['phase']:5}  {rates}  {verdict}"
