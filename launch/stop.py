"""`launch/stop.sh`: end a stack from another terminal."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from launch import cleanup, options
from launch.errors import StackError, UsageError
from launch.run_directory import RunDirectory, known


def run(arguments: Sequence[str]) -> int:
    """0 when nothing of the stack is left, which includes that there was none."""
    given = options.stack_name(arguments, "stop", "End a stack in order, and wait until it has.")
    directory = chosen(given.name)
    if directory is None:
        print("no stack is running")
        return 0
    end(directory, given.timeout)
    print(f"{directory.name} has ended; its logs: {directory.logs}")
    return 0


def chosen(name: str | None) -> RunDirectory | None:
    """The stack called so, or the only one. Raises UsageError where there are several."""
    found = known()
    if name is not None:
        return next((directory for directory in found if directory.name == name), None)
    if len(found) > 1:
        names = ", ".join(directory.name for directory in found)
        raise UsageError(f"several stacks are running ({names}): choose one with --name")
    return found[0] if found else None


def end(directory: RunDirectory, timeout: float) -> None:
    """Through its launcher, or what a killed launcher left. Raises StackError after `timeout`."""
    launcher = directory.launcher()
    if launcher is not None:
        with suppress(ProcessLookupError):
            os.kill(launcher, signal.SIGTERM)
        _wait(directory, launcher, timeout)
    with directory.held():
        cleanup.sweep(directory)


def _wait(directory: RunDirectory, launcher: int, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while directory.launcher() == launcher:
        if time.monotonic() > deadline:
            raise StackError(f"launcher {launcher} still runs after {timeout:g} s")
        time.sleep(0.1)
