"""What lies in the L1 gets a digest in the index, so that it can prove itself after a crash.

It is computed in the pauses of transfers, and not with the store: it would cost that half its rate.
Where there are no pauses it takes a turn all the same, now and then.
"""

from collections.abc import Collection
from functools import partial
from itertools import islice

import numpy as np
import numpy.typing as npt
import xxhash

from sidecar.cache.entry import Entry, State
from sidecar.cache.journal import Journal
from sidecar.cache.records import DIGEST_BYTES
from sidecar.flow import called_back
from sidecar.handlers.core import Core

# For so long there is nothing to copy: a pause. Then so much is read before others get their turn.
_PAUSE_SECONDS = 0.02
TURN_BYTES = 32 << 20
TURN_OBJECTS = 256
# Without a pause for so long: some milliseconds of one thread in each second.
_PATIENCE_SECONDS = 1.0
# Of those that wait, at once: of most that were evicted under load nothing is left.
LOOKED_AT = 1024


def digest_of(arena: npt.NDArray[np.uint8], entry: Entry) -> bytes:
    """That of the bytes in its slot."""
    data = arena[entry.offset : entry.offset + entry.size].data
    return xxhash.xxh3_128_digest(data)[:DIGEST_BYTES]


class Digests:
    """Runs for as long as the server does. Loop thread only."""

    def __init__(self, core: Core, journal: Journal) -> None:
        self._core = core
        self._journal = journal
        self._last_turn = core.now()
        core.flows.start(self._run())

    async def _run(self) -> None:
        core, waiting = self._core, self._journal.undigested
        while not core.closing:
            self._forget()
            if not (waiting and self._is_due()):
                await core.flows.sleep(_PAUSE_SECONDS if waiting else 1.0)
                continue
            self._last_turn = core.now()
            entries = self._next()
            digests: list[bytes] = []
            with core.pinned(entries):
                work = partial(_digest_all, core.arena.bytes, entries, digests)
                done = await called_back(partial(core.copies.submit, [work]))
            if not done:
                continue
            for entry, digest in zip(entries, digests, strict=True):
                if entry.state is State.READY:
                    self._journal.proven(entry, digest)
            self._forget(set(entries))  # only now: they wait until their digests are written
            await core.flows.sleep(0)

    def _is_due(self) -> bool:
        core = self._core
        has_waited = core.now() - self._last_turn >= _PATIENCE_SECONDS
        return has_waited or core.copies.idle_seconds() >= _PAUSE_SECONDS

    def _forget(self, done: Collection[Entry] = ()) -> None:
        """Those at the front that are not there any more, or `done`, wait no longer."""
        waiting = self._journal.undigested
        for _ in range(min(LOOKED_AT, len(waiting))):
            if waiting[0].state is State.READY and waiting[0] not in done:
                break
            waiting.popleft()

    def _next(self) -> list[Entry]:
        """Those that have been waiting longest, of what is still there."""
        entries: list[Entry] = []
        size = 0
        for entry in islice(self._journal.undigested, LOOKED_AT):
            if size >= TURN_BYTES or len(entries) >= TURN_OBJECTS:
                break
            if entry.state is State.READY:
                entries.append(entry)
                size += entry.size
        return entries


def _digest_all(arena: npt.NDArray[np.uint8], entries: list[Entry], digests: list[bytes]) -> None:
    for entry in entries:
        digests.append(digest_of(arena, entry))
