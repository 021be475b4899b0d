"""Whole requests of workers on this server and on the peer's, beside plain copies of the link."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import servers
from bench.common import BenchError
from bench.gpu import transfers
from bench.gpu.expected import (
    BOTH_TIMES_ONE,
    LONG_RUN_KIB,
    LONG_RUN_SHARE,
    MEDIUM_RUN_KIB,
    MEDIUM_RUN_SHARE,
)
from bench.gpu.plain import Link, Rates
from bench.gpu.shapes import Shape
from sidecar.engines.cuda.driver import Driver

Row = dict[str, Any]
_SERVERS = ("plain", "peer", "ours")


def measure(
    driver: Driver,
    names: Sequence[str],
    shapes: Sequence[Shape],
    clients: Sequence[int],
    l1_gb: int,
    logs: Path,
) -> Iterator[Row]:
    """A row for each shape, number of workers and direction; GB/s."""
    link = Link(driver, max(shape.nbytes for shape in shapes))
    with ExitStack() as stack:
        urls = {name: url for name in names if (url := _start(name, l1_gb, logs, stack))}
        for shape in shapes:
            reference = link.rates(shape.nbytes, repeats=10)
            for count in clients:
                found = {name: _rates(name, url, shape, count) for name, url in urls.items()}
                measured = {name: rates for name, rates in found.items() if rates is not None}
                yield from rows(shape, count, reference, measured)


def _rates(name: str, url: str, shape: Shape, clients: int) -> Rates | None:
    """None where the peer's server fails: our figures are worth something without."""
    try:
        return transfers.rates(url, shape, clients, repeats=2 if clients > 1 else 5)
    except BenchError as error:
        if name == "ours":
            raise
        print(f"{shape.name}, without the peer's server: {error}", file=sys.stderr)
        return None


def _start(name: str, l1_gb: int, logs: Path, stack: ExitStack) -> str | None:
    """The URL of a server that is up; None where the peer's does not start here."""
    try:
        server = stack.enter_context(servers.running(name, l1_gb, logs))
    except (OSError, RuntimeError) as error:
        if name == "ours":
            raise
        print(f"without the peer's server: {error}", file=sys.stderr)
        return None
    server.wait_populated()
    return server.url


def rows(shape: Shape, clients: int, reference: Rates, found: dict[str, Rates]) -> Iterator[Row]:
    """One for each direction that was measured, with the verdict on ours."""
    ours = found.get("ours")
    for phase in ("store", "load", "both")[: 2 if clients == 1 else 3]:
        row = {"shape": shape.name, "clients": clients, "phase": phase}
        rates = {name: each[phase] for name, each in found.items()}
        reached = None if ours is None else _reached(shape, phase, ours, reference)
        yield row | {"plain": reference[phase], **rates, "reached": reached}


def _reached(shape: Shape, phase: str, ours: Rates, reference: Rates) -> bool | None:
    """Whether a target is reached; None where there is none."""
    if phase == "both":
        return ours["both"] >= BOTH_TIMES_ONE * max(ours["store"], ours["load"])
    if shape.run_kib >= LONG_RUN_KIB:
        return ours[phase] >= LONG_RUN_SHARE * reference[phase]
    if shape.run_kib == MEDIUM_RUN_KIB:
        return ours[phase] >= MEDIUM_RUN_SHARE * reference[phase]
    return None


def line(row: Row) -> str:
    """For the terminal."""
    rates = "  ".join(f"{name} {row[name]:6.1f} GB/s" for name in _SERVERS if name in row)
    what = f"{row['shape']:18} {row['clients']} worker(s)  {row['phase']:5}"
    return f"{what}  {rates}  {_verdict(row)}".rstrip()


def markdown(found: Iterable[Row]) -> str:
    """A table for docs/understand.md; GB/s."""
    lines = ["| requests | workers | | plain | peer | ours | |", "|---|--:|---|--:|--:|--:|---|"]
    for row in found:
        rates = [f"{row[name]:.1f}" if name in row else "-" for name in _SERVERS]
        cells = [row["shape"], str(row["clients"]), row["phase"], *rates, _verdict(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _verdict(row: Row) -> str:
    return {True: "ok", False: "MISSED", None: ""}[row["reached"]]
