"""`python3 -m tests.gpu.quick`: step after step, each in a process of its own, and a table.

A line of JSON is printed and kept when a step has ended, so that whatever ends this takes nothing
with it. Exit code 1 for wrong bytes, what hung and what crashed, 2 if nothing could be checked.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.gpu.quick import runner, tables, wheels
from tests.gpu.quick.runner import BAD, HUNG, REPO, Outcome
from tests.gpu.quick.steps import STEPS, Step

_ENOUGH_SECONDS = 3.0  # below that a step is not begun
_SMALL_PATIENCE = 10  # times the limits: little data is for machines without a GPU


def main(arguments: Sequence[str] | None = None, steps: Sequence[Step] = STEPS) -> int:
    options = _parser().parse_args(arguments)
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%SZ")
    folder = Path(options.output) / f"gpu-quick-{date}"
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="gpu-quick-") as unpacked:
        used = wheels.unpack(Path(options.wheels), Path(unpacked))
        environment = _environment(unpacked, used, options)
        wanted = [step for step in steps if step.number >= options.first]
        outcomes = []
        with (folder / "steps.jsonl").open("a") as file:
            for outcome in _run(wanted, folder, environment, options):
                outcomes.append(outcome)
                for place in (file, sys.stdout):
                    print(outcome.as_json(), file=place, flush=True)
                os.fsync(file.fileno())
    table = tables.markdown(outcomes, date)
    (folder / "table.md").write_text(table)
    print(f"\n{table}\nwritten: {folder}")
    return _code(outcomes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m tests.gpu.quick", description=__doc__)
    parser.add_argument("--seconds", type=float, default=540, help="limit for all steps together")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first step")
    parser.add_argument("--no-batches", action="store_true", help="begin no batches of copies")
    parser.add_argument("--small", action="store_true", help="little data: to try the steps out")
    parser.add_argument("--wheels", default=str(REPO / "build" / "gpu-wheels"), help="a folder")
    parser.add_argument("--output", default="bench-results", help="folder for what was found")
    return parser


def _environment(unpacked: str, used: list[str], options: argparse.Namespace) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(REPO), unpacked, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "GPU_QUICK_WHEELS": " ".join(used),
        "GPU_QUICK_BATCHES": "" if options.no_batches else "1",
        "GPU_QUICK_SMALL": "1" if options.small else "",
    }


def _run(
    steps: Sequence[Step], folder: Path, environment: dict[str, str], options: argparse.Namespace
) -> Iterator[Outcome]:
    end = time.monotonic() + options.seconds
    no_driver = ""
    for step in steps:
        left = end - time.monotonic()
        why = no_driver
        if left < _ENOUGH_SECONDS:
            why = _no_time_for(step)
        elif step.is_of_batches and not environment["GPU_QUICK_BATCHES"]:
            why = "--no-batches"
        if why:
            yield Outcome(step.number, step.what, "skipped", why)
            continue
        limit = step.seconds * (_SMALL_PATIENCE if options.small else 1)
        outcome = runner.run(step, folder, min(limit, left), environment)
        if outcome.verdict == HUNG and left < limit:
            outcome.verdict, outcome.why = "skipped", _no_time_for(step)
        if step.number == 0 and outcome.verdict == "skipped":
            no_driver = outcome.why
        if step.is_of_batches and outcome.verdict in BAD:
            environment["GPU_QUICK_BATCHES"] = ""
        yield outcome


def _no_time_for(step: Step) -> str:
    return f"no time left: --from {step.number}"


def _code(outcomes: Sequence[Outcome]) -> int:
    if any(outcome.verdict in BAD for outcome in outcomes):
        return 1
    return 2 if all(outcome.verdict == "skipped" for outcome in outcomes) else 0
