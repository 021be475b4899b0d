"""`launch/stop.sh`: end a stack from another terminal."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

from launch import choice, cleanup
from launch.errors import StackError
from launch.options import seconds
from launch.run_directory import RunDirectory


def run(arguments: Sequence[str]) -> int:
    """0 when nothing of the stack is left, which includes that there was none."""
    parser = choice.parser("stop", "End a stack in order, and wait until it has ended.")
    parser.add_argument("--timeout", type=seconds, default=180.0, help="(%(default)g s)")
    given = parser.parse_args(arguments)
    directory = choice.chosen(given.name)
    if directory is None:
        print("no stack is running")
        return 0
    end(directory, given.timeout)
    print(f"{directory.name} has ended; its logs: {directory.logs}")
    return 0


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
