"""What lies in the L1 gets a digest in the index, so that it can prove itself after a crash.

It is computed in the pauses of transfers, and not with the store: it would cost that half its rate.
"""

from functools import partial

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


def digest_of(arena: npt.NDArray[np.uint8], entry: Entry) -> bytes:
    """That of the bytes in its slot."""
    data = arena[entry.offset : entry.offset + entry.size].data
    return xxhash.xxh3_128_digest(data)[:DIGEST_BYTES]


class Digests:
    """Runs for as long as the server does. Loop thread only."""

    def __init__(self, core: Core, journal: Journal) -> None:
        self._core = core
        self._journal = journal
        core.flows.start(self._run())

    async def _run(self) -> None:
        core, waiting = self._core, self._journal.undigested
        while not core.closing:
            if not waiting or core.copies.idle_seconds() < _PAUSE_SECONDS:
                await core.flows.sleep(_PAUSE_SECONDS if waiting else 1.0)
                continue
            count, entries = self._next()
            digests: list[bytes] = []
            with core.pinned(entries):
                work = partial(_digest_all, core.arena.bytes, entries, digests)
                done = await called_back(partial(core.copies.submit, [work]))
            if not done:
                continue
            for entry, digest in zip(entries, digests, strict=True):
                if entry.state is State.READY:
                    self._journal.proven(entry, digest)
            for _ in range(min(count, len(waiting))):
                waiting.popleft()  # only now: they are waiting until their digests are written
            await core.flows.sleep(0)

    def _next(self) -> tuple[int, list[Entry]]:
        """How many have been waiting longest, and those of them that are still there."""
        entries: list[Entry] = []
        count = size = 0
        for entry in self._journal.undigested:
            if size >= TURN_BYTES or len(entries) >= TURN_OBJECTS:
                break
            count += 1
            if entry.state is State.READY:
                entries.append(entry)
                size += entry.size
        return count, entries


def _digest_all(arena: npt.NDArray[np.uint8], entries: list[Entry], digests: list[bytes]) -> None:
    for entry in entries:
        digests.append(digest_of(arena, entry))
