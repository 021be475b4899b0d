"""The arena as the GPU sees it: pinned in pieces, in the background and where it is needed."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np

from sidecar.cache.arena import PIECE_BYTES
from sidecar.engines.cuda.driver import OUT_OF_MEMORY, Driver, DriverError
from sidecar.engines.cuda.plan import Ints

log = logging.getLogger(__name__)

# Eight processes that pin all the time would keep the driver from everybody else: after a piece
# each leaves it alone for so many times as long as the piece took.
_REST = 3
_REMEDY = (
    "transfers with the rest are slow. Raise the limits of pinned memory: `ulimit -l unlimited` "
    "(docker --ulimit memlock=-1), and the memory of the container beyond --l1-size-gb"
)


class PinnedArena:
    """Where copies find the bytes of the arena. For the CUDA thread only.

    Pinning a piece takes milliseconds and stops the driver for everybody on the machine, so it
    is done piece by piece while there is nothing else to do, those near the GPU first, with
    pauses, and at once for a piece that a copy needs. A piece that cannot be pinned is copied to
    and from as it is, slowly.
    """

    def __init__(
        self,
        driver: Driver,
        address: int,
        size: int,
        near: range | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The arena of `size` bytes is mapped at `address`; those at `near` are near the GPU."""
        self._driver, self._clock = driver, clock
        self._size = size
        self._near = near or range(size)
        self._near_pieces: deque[int] = deque()  # resident, to be pinned when there is time
        self._far_pieces: deque[int] = deque()
        pieces = -(-size // PIECE_BYTES)
        self._address = address + np.arange(pieces, dtype=np.int64) * PIECE_BYTES
        self._is_pinned = np.zeros(pieces, bool)
        self._gave_up = False
        self._rests_until = 0.0

    @property
    def pinned_bytes(self) -> int:
        sizes = [self._extent(int(piece)) for piece in np.flatnonzero(self._is_pinned)]
        return sum(sizes)

    def populated(self, pieces: Iterable[int]) -> None:
        """These pieces are resident: they may be touched."""
        for piece in pieces:
            is_near = piece * PIECE_BYTES in self._near
            (self._near_pieces if is_near else self._far_pieces).append(piece)

    def advance(self) -> float | None:
        """Pin one more piece, as there is nothing else to do, if it is time.

        In how many seconds there will be more to do; None if there is none to be pinned now.
        """
        began = self._clock()
        if began < self._rests_until:
            return self._rests_until - began
        while not self._gave_up and (pieces := self._near_pieces or self._far_pieces):
            piece = pieces.popleft()
            if not self._is_pinned[piece]:
                self._pin(piece)
                pause = _REST * (self._clock() - began)
                self._rests_until = self._clock() + pause
                return pause
        return None

    def need(self, offsets: Ints) -> bool:
        """Pin the pieces in which these offsets lie; whether all of them are pinned now."""
        pieces = np.unique(offsets // PIECE_BYTES)
        for piece in pieces[~self._is_pinned[pieces]].tolist():
            if not self._gave_up:
                self._pin(piece)
        return bool(self._is_pinned[pieces].all())

    def addresses(self, offsets: Ints) -> Ints:
        """What copies call the bytes at these offsets."""
        return self._address[offsets // PIECE_BYTES] + offsets % PIECE_BYTES

    def _pin(self, piece: int) -> None:
        try:
            address = self._driver.pin(int(self._address[piece]), self._extent(piece))
        except DriverError as error:
            if error.is_fatal:
                raise
            self._gave_up = True
            what = "no memory may be pinned" if error.code == OUT_OF_MEMORY else str(error)
            log.warning(
                "%d MiB of the L1 are pinned, %s: %s", self.pinned_bytes >> 20, what, _REMEDY
            )
            return
        self._address[piece] = address
        self._is_pinned[piece] = True

    def _extent(self, piece: int) -> int:
        return min(PIECE_BYTES, self._size - piece * PIECE_BYTES)
