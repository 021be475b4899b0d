"""Watching a stack: what is ready, what has died, and whether to start that again."""

import time
import xmlrpc.client
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launch import processes, shared_memory
from launch.daemon import Daemon
from launch.health import Prober
from launch.plan import Program, Stack
from launch.processes import Process
from launch.render import group_name
from launch.terminal import Terminal

# A program may die this often in a row; what has served for a while begins to count anew.
_DEATHS = 3
_FORGIVEN_SECONDS = 300.0
_INVENTORY_SECONDS = 5.0
_ENDED = ("EXITED", "FATAL", "BACKOFF", "UNKNOWN")


class StackFailed(Exception):
    """Why the stack cannot go on; `program` is to blame, `code` is for the launcher to end with."""

    def __init__(self, program: str, why: str, code: int) -> None:
        super().__init__(f"{program} {why}")
        self.program = program
        self.code = code


@dataclass
class State:
    """One program as it is now; times are of the monotonic clock, `pid` is 0 before its start."""

    program: Program
    pid: int = 0
    started: float = 0.0
    ready_since: float | None = None
    deaths: int = 0
    restarts: int = 0


class Keeper:
    """Looks at the programs whenever it is asked to.

    During the start nothing is restarted: the first failure is the answer that people wait for,
    and a wrong model does not get better. Once all have been ready, what dies is started again,
    at most three times in a row. `on_change` is called when a record of the stack is out of date.
    """

    def __init__(
        self, stack: Stack, daemon: Daemon, terminal: Terminal, on_change: Callable[[], None]
    ) -> None:
        self.states = [State(program, started=time.monotonic()) for program in stack.programs]
        self.shared_memory: set[str] = set()
        self.complete = False
        self._stack = stack
        self._daemon = daemon
        self._terminal = terminal
        self._on_change = on_change
        self._prober = Prober(stack.programs)
        self._begun = self._inventoried = time.monotonic()

    def look(self) -> None:
        """Act on what has happened since the last call. Raises StackFailed."""
        now = time.monotonic()
        for state, info in self._infos():
            if info["statename"] in _ENDED:
                self._ended(state, int(info["exitstatus"]), now)
            elif info["pid"] != state.pid:
                state.pid = int(info["pid"])
                self._on_change()
        for state in self.states:
            self._note_readiness(state, now)
        self._note_complete(now)
        if now - self._inventoried > _INVENTORY_SECONDS:
            self._inventoried = now
            self.take_inventory()

    def progress(self) -> str:
        """What is still awaited; empty when nothing is."""
        loading = [state.program.name for state in self.states if state.ready_since is None]
        ready = [state.program.name for state in self.states if state.ready_since is not None]
        if not loading:
            return ""
        return f"loading {', '.join(loading)}" + (f"; ready {', '.join(ready)}" if ready else "")

    def take_inventory(self) -> None:
        """Note the shared memory that the programs have now: the dead cannot be asked."""
        found = set()
        for state in self.states:
            if state.pid:
                found |= shared_memory.mapped(self._processes(state))
        if not found <= self.shared_memory:
            self.shared_memory |= found
            self._on_change()

    def _infos(self) -> list[tuple[State, dict[str, Any]]]:
        try:
            infos = self._daemon.supervisor.programs()
        except (OSError, xmlrpc.client.Error) as error:
            if self._daemon.ended():
                raise StackFailed("supervisord", "has ended", 1) from None
            raise StackFailed("supervisord", f"does not answer: {error}", 1) from None
        return [(state, infos[state.program.name]) for state in self.states]

    def _ended(self, state: State, code: int, now: float) -> None:
        name = state.program.name
        how = f"ended with exit code {code}"
        if code < 0:
            number = self._daemon.signal_of(name)
            how = f"was ended by {number.name if number else 'a signal'}"
            code = 128 + (number or 0)
        self._tidy_after(state)
        if not self.complete:
            raise StackFailed(name, f"{how} while the stack was starting", code or 1)
        if state.ready_since is not None and now - state.ready_since > _FORGIVEN_SECONDS:
            state.deaths = 0
        state.deaths += 1
        if state.deaths > _DEATHS:
            raise StackFailed(name, f"{how}, {state.deaths} times in a row", code or 1)
        self._terminal.say(f"{name} {how}; starting it again ({state.deaths} of {_DEATHS})")
        self._start_again(state, now)

    def _tidy_after(self, state: State) -> None:
        """End what a dead program started: it holds the GPU and ports that the next one needs."""
        if state.pid:
            self.shared_memory |= shared_memory.mapped(self._processes(state))
            processes.kill(lambda: self._processes(state))
        self.shared_memory -= set(shared_memory.remove(self.shared_memory))

    def _processes(self, state: State) -> list[Process]:
        return processes.group(state.pid, self._daemon.leader.pid)

    def _start_again(self, state: State, now: float) -> None:
        state.ready_since, state.pid, state.started = None, 0, now
        state.restarts += 1
        self._prober.forget(state.program.name)
        try:
            self._daemon.supervisor.start(group_name(state.program.priority), state.program.name)
        except (OSError, xmlrpc.client.Error) as error:
            raise StackFailed(state.program.name, f"cannot be started: {error}", 1) from None
        self._on_change()

    def _note_readiness(self, state: State, now: float) -> None:
        if state.ready_since is not None:
            return
        reason = self._prober.reason(state.program.name)
        waited = now - state.started
        if not reason:
            state.ready_since = now
            self.take_inventory()
            self._terminal.say(f"{state.program.name} is ready ({waited:.0f} s)")
        elif waited > self._stack.start_timeout:
            why = f"is not ready after {waited:.0f} s: {reason}"
            raise StackFailed(state.program.name, why, 1)

    def _note_complete(self, now: float) -> None:
        if self.complete or any(state.ready_since is None for state in self.states):
            return
        self.complete = True
        self._on_change()
        stack = self._stack
        self._terminal.say(
            f"READY after {now - self._begun:.0f} s: {stack.model} at {stack.url}/v1; "
            f"sidecar at {stack.programs[0].check.base}; Ctrl-C or launch/stop.sh ends it"
        )
