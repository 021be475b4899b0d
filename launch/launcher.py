"""A stack from its start to its end."""

import signal
import time
import xmlrpc.client
from dataclasses import asdict, astuple
from typing import Any

from launch import cleanup, cpu, shared_memory
from launch.daemon import Daemon
from launch.keeper import Keeper, StackFailed
from launch.plan import Program, Stack
from launch.render import files
from launch.run_directory import RunDirectory
from launch.stream import Stream
from launch.tail import last_lines
from launch.terminal import Terminal

_TICK_SECONDS = 0.2
_LAST_LINES = 12
# Beyond what the programs are given to end.
_STOP_MARGIN_SECONDS = 15.0
# Who asks for the end gets it, and 0; a Ctrl-C also ends the script that ran this.
_CODES = {signal.SIGINT: 130, signal.SIGTERM: 0, signal.SIGHUP: 0}


class Launcher:
    """Runs `stack` in `directory`, whose lock the caller holds."""

    def __init__(self, stack: Stack, directory: RunDirectory) -> None:
        self._stack = stack
        self._directory = directory
        self._terminal = Terminal([program.name for program in stack.programs])
        self._stream = Stream(stack.programs, directory, self._terminal)
        self._signals: list[int] = []
        self._daemon: Daemon
        self._keeper: Keeper

    def run(self) -> int:
        """Until a signal or a failure; the exit code. Nothing is left but the logs."""
        self._take_signals()
        self._write()
        for warning in self._stack.warnings:
            self._terminal.say(f"warning: {warning}")
        self._daemon = Daemon(self._directory)
        self._keeper = Keeper(self._stack, self._daemon, self._terminal, self._write_record)
        failure = None
        try:
            self._write_record()
            self._daemon.wait_started()
            self._keep()
        except StackFailed as error:
            self._terminal.say(f"FAILED: {error}; ending the stack")
            failure = error
        finally:
            self._stop()
            if failure:
                self._report(failure)
            self._terminal.close()
        return failure.code if failure else _CODES[signal.Signals(self._signals[0])]

    def _write(self) -> None:
        try:
            write(self._stack, self._directory)
        except OSError:
            self._directory.clear()
            raise

    def _take_signals(self) -> None:
        for number in _CODES:
            # Under nohup a stack outlives its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda received, _: self._note_signal(received))

    def _note_signal(self, number: int) -> None:
        # Of a terminal that closes, the kernel and the shell both tell: nobody is impatient.
        if number != signal.SIGHUP or not self._signals:
            self._signals.append(number)

    def _keep(self) -> None:
        while not self._signals:
            self._keeper.look()
            self._stream.show()
            for complaint in self._daemon.new_complaints():
                self._terminal.line("supervisord", complaint)
            self._terminal.progress(self._keeper.progress())
            time.sleep(_TICK_SECONDS)
        self._terminal.say("ending the stack; Ctrl-C again kills it")

    def _stop(self) -> None:
        """In order and within a bound; then whatever is left is killed."""
        asked = min(1, len(self._signals))
        self._keeper.take_inventory()
        deadline = time.monotonic() + stop_seconds(self._stack.programs)
        try:
            self._daemon.supervisor.shutdown()
        except (OSError, xmlrpc.client.Error):
            deadline = 0.0  # it has ended, or hangs
        while not self._daemon.ended() and time.monotonic() < deadline:
            if len(self._signals) > asked:
                break
            # What was still loading makes shared memory until it hears the signal.
            self._keeper.take_inventory()
            self._stream.show()
            time.sleep(_TICK_SECONDS)
        cleanup.end(self._directory, self._daemon.leader)
        self._daemon.kill()
        self._stream.show()
        shared_memory.remove(self._keeper.shared_memory)
        self._directory.clear()

    def _report(self, failure: StackFailed) -> None:
        log = self._directory.log(failure.program)
        for line in last_lines(log, _LAST_LINES):
            self._terminal.line(failure.program, line)
        self._terminal.say(f"FAILED: {failure}; all of its output: {log}")

    def _write_record(self) -> None:
        record = described(self._stack, self._keeper, self._daemon)
        try:
            self._directory.write_record(record)
        except OSError as error:  # a full disk is no reason to end what serves
            self._terminal.say(f"warning: no record for status.sh and stop.sh: {error}")


def write(stack: Stack, directory: RunDirectory) -> None:
    """The directories, the scripts, and the model of a stack that brings its own."""
    for path in (directory.logs, directory.temporary, directory.path / "bin"):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path, text in files(stack, directory).items():
        path.write_text(text)
    if stack.own_model:
        cpu.small_model(directory.path / "model")


def stop_seconds(programs: tuple[Program, ...]) -> float:
    """The bound of an orderly end: one priority after the other."""
    longest: dict[int, int] = {}
    for program in programs:
        longest[program.priority] = max(longest.get(program.priority, 0), program.stop_seconds)
    return sum(longest.values()) + _STOP_MARGIN_SECONDS


def described(stack: Stack, keeper: Keeper, daemon: Daemon) -> dict[str, Any]:
    """What other commands, and the launcher after this one, need to know."""
    return {
        "boot": cleanup.boot_id(),
        "leader": astuple(daemon.leader),
        "shared_memory": sorted(keeper.shared_memory),
        "url": stack.url,
        "model": stack.model,
        "complete": keeper.complete,
        "programs": [
            {
                "name": state.program.name,
                "check": asdict(state.program.check),
                "ports": state.program.ports,
                "restarts": state.restarts,
            }
            for state in keeper.states
        ],
    }
