"""`kv-sidecar wait`."""

import argparse
import time
from typing import Any

from sidecar.commands import admin
from sidecar.commands.output import complain

_POLL_SECONDS = 0.1


def add(commands: Any) -> None:
    parser = commands.add_parser("wait", help="wait until a server is healthy")
    parser.add_argument("--url", default=admin.URL, help="admin address (default %(default)s)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds (default 30)")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    """Poll until the server is healthy; at least one try, whatever the timeout."""
    deadline = time.monotonic() + given.timeout
    while True:
        try:
            left = max(_POLL_SECONDS, deadline - time.monotonic())
            admin.get(given.url, "/healthcheck", timeout=left)
            return 0
        except (OSError, ValueError) as error:
            reason = admin.reason(error)
        if time.monotonic() + _POLL_SECONDS > deadline:
            complain(f"{given.url} is not healthy after {given.timeout:g} s: {reason}")
            return 1
        time.sleep(_POLL_SECONDS)
