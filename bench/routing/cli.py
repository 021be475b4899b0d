"""`python -m bench.routing`: what a multi-turn load gains when Dynamo's router sees the sidecars.

About six minutes, on CPUs: two workers, each with a sidecar of its own.
"""

from __future__ import annotations

import argparse
import datetime
import json
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import report as machine
from bench.common import BenchError
from bench.routing import picture, report, sides
from connectors.errors import ConnectorError
from examples.demo.process import ProcessFailed
from launch.errors import StackError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """0, 1 where something failed, or 2 where nothing can be measured here."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description=__doc__)
    parser.add_argument("--output", default="bench-results", help="folder for JSON and picture")
    output = Path(parser.parse_args(arguments).output)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%SZ")
    about, runs = machine.machine(), []
    try:
        with tempfile.TemporaryDirectory(prefix="kv-bench-") as directory:
            for run in sides.measure(Path(directory)):
                runs.append(run)
                name = f"{report.LOADS[run.at_once]}, the router sees {report.SIDES[run.announced]}"
                print(f"done: {name}", file=sys.stderr)
    except (ConnectorError, StackError, UsageError) as error:
        print(f"bench.routing: {error}", file=sys.stderr)
        return 2
    except (BenchError, ProcessFailed, OSError) as error:
        print(f"bench.routing failed: {error}", file=sys.stderr)
        return 1
    print(report.table(runs))
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"routing-{date}.json"
    document = {"date": date, "machine": about, "runs": [run.as_json() for run in runs]}
    target.write_text(json.dumps(document, indent=1) + "\n")
    picture.write(target.with_suffix(".svg"), runs)
    print(f"\nwritten: {target}, {target.with_suffix('.svg')}", file=sys.stderr)
    return 0
