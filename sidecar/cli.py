"""The ``kv-sidecar`` command. Exit codes: 0 done, 1 failed, 2 wrong usage."""

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any, NoReturn

import connectors.cli
from connectors.errors import ConnectorError
from sidecar import __version__
from sidecar.config import Config, ConfigError, load
from sidecar.config.show import as_yaml

_URL = "http://127.0.0.1:8080"
_POLL_SECONDS = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code; problems are one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        # `serve` has its own parser: its options come from the table in sidecar.config.
        if arguments and arguments[0] == "serve":
            return _serve(arguments[1:])
        return _run_command(arguments)
    except (ConfigError, ConnectorError) as error:
        _complain(str(error))
        return 2


def _run_command(arguments: Sequence[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, users = arguments[:end], arguments[end + 1 :]
    given = _parser().parse_args(own)
    if users and given.command != "worker-args":
        raise ConfigError(f"{given.command} takes no arguments after --")
    if given.command in connectors.cli.COMMANDS:
        return connectors.cli.run(given, users)
    return _wait(given.url, given.timeout) if given.command == "wait" else _status(given.url)


def _serve(arguments: Sequence[str]) -> int:
    loaded = load(arguments, os.environ)
    for warning in loaded.warnings:
        _complain(f"warning: {warning}")
    if loaded.print_config:
        print(as_yaml(loaded.config, loaded.sources))
        return 0
    return _run(loaded.config)


def _run(config: Config) -> int:
    # The other subcommands need none of what the server imports.
    from sidecar.app import serve

    return serve(config)


def _status(url: str) -> int:
    try:
        print(json.dumps(_get(url, "/status", timeout=10), indent=2))
    except (OSError, ValueError) as error:
        _complain(f"no status from {url}: {_reason(error)}")
        return 1
    return 0


def _wait(url: str, timeout: float) -> int:
    """Poll until the server is healthy; at least one try, whatever the timeout."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            _get(url, "/healthcheck", timeout=max(_POLL_SECONDS, deadline - time.monotonic()))
            return 0
        except (OSError, ValueError) as error:
            reason = _reason(error)
        if time.monotonic() + _POLL_SECONDS > deadline:
            _complain(f"{url} is not healthy after {timeout:g} s: {reason}")
            return 1
        time.sleep(_POLL_SECONDS)


def _get(url: str, path: str, timeout: float) -> Any:
    with urllib.request.urlopen(url.rstrip("/") + path, timeout=timeout) as reply:
        return json.load(reply)


def _reason(error: Exception) -> str:
    """What to tell the operator: the server's own words where it answered with some."""
    if isinstance(error, urllib.error.HTTPError):
        try:
            body = json.load(error)
            return str(body.get("reason") or body.get("error") or error)
        except (ValueError, AttributeError):
            return str(error)
    if isinstance(error, urllib.error.URLError):
        return str(error.reason)
    return str(error) or type(error).__name__


def _complain(line: str) -> None:
    print(f"kv-sidecar: {line}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kv-sidecar", description="A KV-cache server for vLLM workers.")
    parser.add_argument("--version", action="version", version=f"kv-sidecar {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("serve", help="run the server (serve --help lists its options)")
    status = commands.add_parser("status", help="print the state of a running server as JSON")
    wait = commands.add_parser("wait", help="wait until a server is healthy")
    for command in (status, wait):
        command.add_argument("--url", default=_URL, help=f"admin address (default {_URL})")
    wait.add_argument("--timeout", type=float, default=30.0, help="seconds (default 30)")
    connectors.cli.add_commands(commands)
    return parser
