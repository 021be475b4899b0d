"""What an earlier server has left in the L1: what has to prove itself, and what others may touch.

After a crash nothing is served that has not proven itself by its digest. That is done ahead of use,
what was used last first: it goes on while the server serves. And whoever had the arena open may
still write to a slot that was prepared for it, or read from one. Such slots are left alone until
the kernel says that all these are gone.
"""

import logging
from functools import partial

from sidecar.cache.entry import Entry, State
from sidecar.cache.recovery import Restored
from sidecar.flow import called_back
from sidecar.handlers.core import Core
from sidecar.handlers.digests import LOOKED_AT, TURN_BYTES, TURN_OBJECTS, digest_of

log = logging.getLogger(__name__)


class Inheritance:
    """Loop thread only."""

    def __init__(self, core: Core, restored: Restored, own_name_told: bool) -> None:
        """`own_name_told`: others may have the arena open by its own name."""
        self._core = core
        self._left = restored
        self._own_name_told = own_name_told
        self._others_gone = False
        core.others_bytes = self._others_bytes
        if restored.unproven:
            core.flows.start(self._prove_all())

    def _others_bytes(self) -> int:
        return sum(entry.slot_bytes for entry in self._left.suspects + self._left.being_read)

    def tick(self) -> None:
        """Once a second: has whoever had the arena open let go of it?"""
        core, left = self._core, self._left
        if self._others_gone or not core.attachments.predecessors_gone(self._own_name_told):
            return
        self._others_gone = True
        if left.suspects or left.being_read:
            log.info("no process has the earlier server's L1 open any more: all of it is usable")
        for entry in left.suspects:
            core.l1.disown(entry)
        core.l1.journal.read(left.being_read)
        for entry in left.being_read:
            core.l1.unpin(entry)
        left.suspects, left.being_read = [], []

    async def _prove_all(self) -> None:
        core, waiting = self._core, self._left.unproven
        total, proven = len(waiting), list[Entry]()
        while waiting and not core.closing:
            await core.flows.sleep(0)
            turn = self._next()
            good: set[Entry] = set()
            work = partial(self._compare, turn, good)
            await called_back(partial(core.copies.submit, [work]))
            for entry, _ in turn:
                if entry.state is not State.INHERITED:
                    continue  # its slot was needed
                if entry not in good:
                    core.l1.disown(entry)
                elif core.l1.prove(entry):
                    proven.append(entry)
        log.info("%d of %d objects of the earlier server are verified", len(proven), total)
        await self._put_in_order(proven)

    async def _put_in_order(self, proven: list[Entry]) -> None:
        """What was used first is to go first, and it has come last."""
        l1 = self._core.l1
        while proven and not self._core.closing:
            await self._core.flows.sleep(0)
            for _ in range(min(TURN_OBJECTS, len(proven))):
                entry = proven.pop()
                if entry.state is State.READY and entry.used_at == entry.stored_at:
                    l1.touch(entry.space.key, [entry.hash])

    def _next(self) -> list[tuple[Entry, bytes]]:
        turn: list[tuple[Entry, bytes]] = []
        size, waiting = 0, self._left.unproven
        for _ in range(min(LOOKED_AT, len(waiting))):
            if size >= TURN_BYTES or len(turn) >= TURN_OBJECTS:
                break
            entry, digest = waiting.pop()
            if entry.state is State.INHERITED:
                turn.append((entry, digest))
                size += entry.size
        return turn

    def _compare(self, turn: list[tuple[Entry, bytes]], good: set[Entry]) -> None:
        """On a copy thread: which of these are what they should be."""
        arena = self._core.arena.bytes
        good |= {entry for entry, digest in turn if digest_of(arena, entry) == digest}
