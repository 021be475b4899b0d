"""`kv-sidecar wait`: until a server is healthy, then run what needs it."""

import argparse
import os
import time
import xmlrpc.client
from collections.abc import Sequence
from typing import Any

from sidecar.commands import admin
from sidecar.commands.output import complain
from sidecar.commands.supervisor import Supervisor
from sidecar.config import ConfigError

_POLL_SECONDS = 0.1
_RESTART_SECONDS = 3
# Supervisor's words for a program that it will not start again by itself.
_ENDED = ("EXITED", "FATAL", "STOPPED")


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "wait",
        help="wait until a server is healthy",
        epilog="Then the command after -- runs in place of this one.",
    )
    add = parser.add_argument
    add("--url", default=admin.URL, help="the sidecar's admin address (default %(default)s)")
    add("--model", default="", help="--url is an OpenAI server: until it lists this model")
    add("--timeout", type=float, default=30.0, help="seconds (default %(default)g)")
    add("--supervisor", metavar="SOCKET", default="", help="supervisord that runs the server ...")
    add("--program", default="", help="... as this program: end with its code when it ends")


def run(given: argparse.Namespace, command: Sequence[str]) -> int:
    """0 when healthy (or what `command` makes of it), the server's exit code when it has ended.

    1 when the time is over. There is at least one try, whatever the timeout.
    """
    if bool(given.supervisor) != bool(given.program):
        raise ConfigError("--supervisor and --program go together")
    if not 0 <= given.timeout < 1e6:
        raise ConfigError(f"--timeout: {given.timeout:g} is no number of seconds")
    code = _wait(given)
    if code == 0 and command:
        try:
            os.execvp(command[0], list(command))
        except OSError as error:
            complain(f"{command[0]}: {error.strerror}")
            return 127
    return code


def _wait(given: argparse.Namespace) -> int:
    deadline = time.monotonic() + given.timeout
    while True:
        reason = unready(given.url, given.model, max(_POLL_SECONDS, deadline - time.monotonic()))
        if not reason:
            return 0
        ended = _ended(given.supervisor, given.program) if given.supervisor else None
        if ended is not None:
            complain(f"{given.program} has ended with exit code {ended}; {given.url}: {reason}")
            return ended or 1
        if time.monotonic() + _POLL_SECONDS > deadline:
            complain(f"{given.url} is not healthy after {given.timeout:g} s: {reason}")
            return 1
        time.sleep(_POLL_SECONDS)


def unready(url: str, model: str, timeout: float) -> str:
    """Why the server at `url` cannot be used; empty when it can.

    With a `model`: the server speaks OpenAI's API and must list it.
    """
    try:
        if not model:
            admin.get(url, "/healthcheck", timeout)
            return ""
        listed = [entry["id"] for entry in admin.get(url, "/v1/models", timeout)["data"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return admin.reason(error)
    return "" if model in listed else f"it lists {', '.join(listed) or 'no model'}, not {model}"


def _ended(socket: str, program: str) -> int | None:
    """The exit code of a program that does not run, nor will; None for any other."""
    try:
        info = Supervisor(socket).programs()[program]
    except (OSError, xmlrpc.client.Error, KeyError) as error:
        complain(f"{program} at {socket}: {admin.reason(error)}")
        return 1
    # Whoever restarts programs gets the time to do it.
    if info["statename"] not in _ENDED or info["now"] - info["stop"] < _RESTART_SECONDS:
        return None
    return int(info["exitstatus"]) if info["exitstatus"] > 0 else 1
