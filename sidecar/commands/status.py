"""`kv-sidecar status`."""

import argparse
import json
import time
from http import HTTPStatus
from typing import Any
from urllib.error import HTTPError

from sidecar.cache import segment
from sidecar.commands import admin, status_table
from sidecar.commands.arguments import checked
from sidecar.commands.output import amount, complain
from sidecar.commands.status_table import Hits, hits
from sidecar.config.values import number

_CLEAR = "\033[H\033[2J"
_TIMEOUT_SECONDS = 10.0


def add(commands: Any) -> None:
    parser = commands.add_parser("status", help="the state of a running server")
    parser.add_argument("--url", default=admin.URL, help="admin address (default %(default)s)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument(
        "--watch",
        nargs="?",
        type=checked(number(0.1, 3600)),
        const=2.0,
        metavar="SECONDS",
        help="repeat every so many seconds (default 2) until interrupted",
    )
    output.add_argument("--json", action="store_true", help="all of GET /status")
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    if given.watch is None:
        return _show(given, "")
    try:
        while True:
            # A server that is away now may be back in a moment.
            _show(given, _CLEAR)
            time.sleep(given.watch)
    except KeyboardInterrupt:
        return 0


def _show(given: argparse.Namespace, before: str) -> int:
    try:
        status = admin.get(given.url, "/status", _TIMEOUT_SECONDS)
        text = json.dumps(status, indent=2) if given.json else _table(given.url, status)
    except (OSError, ValueError) as error:
        print(before, end="", flush=True)
        complain(f"no status from {given.url}: {admin.reason(error)}")
        if admin.reason(error) == admin.REFUSED:
            _tell_kept()
        return 1
    print(before + text, flush=True)
    return 0


def _tell_kept() -> None:
    """What lies on this machine for servers that do not run."""
    for left in segment.kept():
        what = f"{amount(left.bytes)}, for {status_table.duration(left.seconds_left)} more"
        complain(f"an L1 is kept for the next server of --shm-name {left.name}: {what}")


def _table(url: str, status: Any) -> str:
    if not isinstance(status, dict) or "uptime_seconds" not in status.get("server", ()):
        raise ValueError("it is not a kv-sidecar of this version; --json prints its answer")
    return "\n".join(status_table.lines(status, _hits(url)))


def _hits(url: str) -> Hits | None:
    try:
        return hits(admin.get_text(url, "/metrics", _TIMEOUT_SECONDS))
    except HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:  # --disable-metrics
            return None
        raise
