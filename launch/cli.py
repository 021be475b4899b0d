"""The commands behind the scripts. Exit codes: 2 wrong usage, 1 what stands in the way."""

import importlib.util
import os
import shlex
import sys
import uuid
from collections.abc import Sequence
from typing import get_args

from connectors.errors import ConnectorError
from launch import cleanup, options, status, stop
from launch.build import build
from launch.errors import StackError, UsageError
from launch.launcher import Launcher
from launch.options import Topology
from launch.plan import Stack
from launch.render import files
from launch.run_directory import RunDirectory, parent
from sidecar.config import ConfigError


def main(arguments: Sequence[str]) -> int:
    """Run `COMMAND [OPTION...]`; problems are one line on stderr."""
    command, *rest = arguments
    try:
        if command in get_args(Topology):
            return _launch(command, rest)  # type: ignore[arg-type]
        return stop.run(rest) if command == "stop" else status.run(rest)
    except (UsageError, ConnectorError, ConfigError) as error:
        code, message = 2, str(error)
    except (StackError, OSError) as error:
        code, message = 1, str(error)
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    print(f"launch/{command}.sh: {message}", file=sys.stderr)
    return code


def _launch(topology: Topology, arguments: Sequence[str]) -> int:
    given = options.parse(topology, arguments, os.environ)
    directory = RunDirectory(parent() / given.name, given.log_dir)
    if set("%;#") & set(f"{directory.path}{directory.logs}"):
        raise UsageError(f"{directory.logs}: supervisor takes no path with % ; or #")
    # The longest of the stack's Unix sockets: vLLM calls its own by a UUID.
    if len(str(directory.temporary / str(uuid.UUID(int=0))).encode()) > 107:
        raise UsageError(f"{directory.path} is too long for Unix sockets: see LAUNCH_RUN_DIR")
    if importlib.util.find_spec("supervisor") is None:
        raise UsageError("supervisor is not installed: install kv-sidecar[launch]")
    if given.dry_run:
        stack = build(given, directory.path)
        show(stack, directory)
        _check(stack)
        return 0
    with directory.held():
        left = cleanup.sweep(directory)
        if left:
            print(f"launch | ended {left} processes of a stack whose launcher was killed")
        stack = build(given, directory.path)
        _check(stack)
        return Launcher(stack, directory).run()


def _check(stack: Stack) -> None:
    """Raises UsageError where it cannot run here."""
    if stack.obstacle:
        raise UsageError(stack.obstacle)


def show(stack: Stack, directory: RunDirectory) -> None:
    """What would run, as the files that would be written."""
    for path, text in files(stack, directory).items():
        print(f"# {shlex.quote(str(path))}\n{text}")
    for warning in stack.warnings:
        print(f"# warning: {warning}")
