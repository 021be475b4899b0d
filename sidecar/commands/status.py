"""`kv-sidecar status`."""

import argparse
import json
from typing import Any

from sidecar.commands import admin
from sidecar.commands.output import complain


def add(commands: Any) -> None:
    parser = commands.add_parser("status", help="print the state of a running server as JSON")
    parser.add_argument("--url", default=admin.URL, help="admin address (default %(default)s)")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    try:
        print(json.dumps(admin.get(given.url, "/status", timeout=10), indent=2))
    except (OSError, ValueError) as error:
        complain(f"no status from {given.url}: {admin.reason(error)}")
        return 1
    return 0
