"""The checks of the GPU path that are figures, one after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench import servers
from bench.common import BenchError
from bench.gpu import batches, events, interference, lifetimes, pinning, plain
from bench.gpu.background import PROCESSES, Background
from bench.gpu.expected import FIGURES, STAGED_KIB, STAGED_RUNS
from bench.gpu.findings import Finding
from bench.gpu.inference import decode
from bench.gpu.sums import sums
from bench.gpu.sweep import calibrated, sweep
from sidecar.engines.cuda.libcuda import LibCuda

_LIMIT = 600.0
PARTS = ("plain copies", "batches", "pinning", "events", "inference", "lifetimes")


def parts(l1_gb: int, logs: Path) -> dict[str, Callable[[], Iterable[Finding]]]:
    """Those that the sweep does not give, by name."""
    served = partial(_served, l1_gb, logs)
    measures: tuple[Callable[[], Iterable[Finding]], ...] = (
        partial(in_a_process, link),
        partial(in_a_process, batch_calls),
        partial(in_a_process, pinned),
        partial(in_a_process, event_latency),
        partial(served, lambda server: interference.measure(server.url)),
        partial(served, lifetimes.measure),
    )
    return dict(zip(PARTS, measures, strict=True))


def _served(
    l1_gb: int, logs: Path, check: Callable[[servers.Server], Iterable[Finding]]
) -> Iterator[Finding]:
    with servers.running("ours", l1_gb, logs) as server:
        server.wait_populated()
        yield from check(server)


def of_sweep(rows: Iterable[dict[str, Any]]) -> Iterator[Finding]:
    """The loads of the sweep for which a figure is expected."""
    for row in rows:
        if row.get("direction") != "load":
            continue
        kib, runs = row["run_kib"], row["runs"]
        if (key := f"batches_{kib}_{runs}") in FIGURES:
            yield Finding(key, row["batches"])
        if kib in STAGED_KIB and runs == STAGED_RUNS:
            yield Finding(f"staged_{kib}", row["staged"])


def link() -> list[Finding]:
    driver = LibCuda()
    return plain.measure(driver, driver.open("true"))


def batch_calls() -> list[Finding]:
    driver = LibCuda()
    return batches.measure(driver, driver.open("true"))


def pinned() -> list[Finding]:
    driver = LibCuda()
    driver.open("true")
    with Background(decode) as inference:
        return pinning.measure(driver, inference)


def event_latency() -> list[Finding]:
    driver = LibCuda()
    driver.open("true")
    return events.measure(driver)


def sweep_rows() -> list[dict[str, Any]]:
    """All rows of the sweep and of the checksums, each printed when it is there."""
    rows, driver = [], LibCuda()
    for row in chain(sweep(driver), calibrated(driver), sums(driver)):
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def in_a_process(function: Callable[[], list[Any]]) -> list[Any]:
    """Its result; what it has pinned and allocated ends with the process. Raises BenchError."""
    ours, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_send_result, args=(function, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(_LIMIT):
            raise BenchError(f"no result within {_LIMIT:.0f} s")
        result: list[Any] | str = ours.recv()
    except EOFError:
        raise BenchError("its process died") from None
    finally:
        process.kill()
        process.join()
    if isinstance(result, str):
        raise BenchError(result)
    return result


def _send_result(function: Callable[[], list[Any]], pipe: Connection) -> None:
    try:
        pipe.send(function())
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
