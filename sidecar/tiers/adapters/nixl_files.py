"""Files moved by NIXL: POSIX (io_uring or libaio), GDS, GDS_MT and HF3FS.

The files are those of the `fs` adapter, so a directory can change hands. NIXL says that
something failed but not what: a full file system is recognised by looking at it.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from sidecar.tiers.adapters.file_io import try_out
from sidecar.tiers.adapters.nixl_agent import Agent
from sidecar.tiers.base import AdapterUnusable, Bytes, NoSpace, TierError

log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """One way to use NIXL: a backend with its parameters. `label` and `needs` are for the log."""

    label: str
    backend: str
    params: Mapping[str, str]
    needs: str


class NixlIO:
    """A `FileIO` over the first of `choices` that works.

    NIXL's POSIX backend has one queue per agent and gives an error in it to whichever request
    looks next: another one would be told that it failed while its bytes are still moving, and
    the one that failed that it is done. So each call has an agent to itself.
    """

    def __init__(self, choices: Sequence[Choice]) -> None:
        self._choices = choices
        self._idle: list[Agent] = []
        self._shared: Agent | None = None

    def open(self, arena: Bytes, fd: int) -> None:
        self._arena = arena
        refusals: list[str] = []
        for choice in self._choices:
            try:
                self._open_choice(choice, fd)
            except TierError as error:
                refusals.append(f"{choice.label} does not work, it needs {choice.needs} ({error})")
                continue
            if refusals:
                log.warning("NIXL: %s: using %s", "; ".join(refusals), choice.label)
            return
        raise AdapterUnusable("; ".join(refusals))

    def write(self, fd: int, record: Bytes) -> None:
        try:
            self._with_agent(lambda agent: agent.write(record, "FILE", fd))
        except TierError as error:
            free = os.fstatvfs(fd)
            if free.f_bavail * free.f_frsize < record.nbytes:
                raise NoSpace("ENOSPC", str(error)) from error
            raise

    def read(self, fd: int, record: Bytes) -> None:
        self._with_agent(lambda agent: agent.read(record, "FILE", fd))

    def close(self) -> None:
        agents = [*self._idle, *([self._shared] if self._shared else [])]
        self._idle, self._shared = [], None
        for agent in agents:
            agent.close()

    def _open_choice(self, choice: Choice, fd: int) -> None:
        self._choice = choice
        if choice.backend != "POSIX":
            self._shared = self._new_agent()
        try:
            try_out(self, self._arena, fd)
        except TierError:
            self.close()
            raise

    def _with_agent(self, action: Callable[[Agent], None]) -> None:
        if self._shared is not None:
            action(self._shared)
            return
        try:
            agent = self._idle.pop()
        except IndexError:
            agent = self._new_agent()
        try:
            action(agent)
        except TierError:
            agent.close()  # nothing of a failed request is left in a queue that is used again
            raise
        self._idle.append(agent)

    def _new_agent(self) -> Agent:
        return Agent(self._choice.backend, self._choice.params, self._arena)
