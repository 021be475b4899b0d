"""Who holds an entry: leases and pins, counted for those who must not take it away."""

from abc import ABC, abstractmethod

from sidecar.cache.entry import MAY_LEASE, MAY_PIN, Entry, IllegalStep, State


class Holds(ABC):
    """The leases and pins of the entries of some spaces; `held` entries have one or more.

    Whoever keeps entries is one: the L1, and what is past it.
    """

    def __init__(self) -> None:
        self.held = 0

    def lease(self, entry: Entry) -> None:
        """Keep `entry` readable for somebody who was promised it.

        It may be on its way still; if it is aborted, the lease holds nothing.
        """
        if entry.state not in MAY_LEASE:
            raise IllegalStep(f"lease: chunk {entry.hash.hex()} is {entry.state}")
        self._hold(entry)
        entry.leases += 1

    def unlease(self, entry: Entry) -> None:
        if entry.leases <= 0:
            raise IllegalStep(f"unlease: chunk {entry.hash.hex()} is not leased")
        entry.leases -= 1
        self._let_go(entry)

    def pin(self, entry: Entry) -> None:
        """A copy of `entry` is under way."""
        if entry.state not in MAY_PIN:
            raise IllegalStep(f"pin: chunk {entry.hash.hex()} is {entry.state}")
        self._hold(entry)
        entry.pins += 1

    def unpin(self, entry: Entry) -> None:
        """The copy has ended."""
        if entry.pins <= 0:
            raise IllegalStep(f"unpin: chunk {entry.hash.hex()} is not pinned")
        entry.pins -= 1
        if entry.state is State.DROPPED and not entry.pins:
            entry.step("end of the last copy")
            self._free(entry)
        self._let_go(entry)

    @abstractmethod
    def _held_now(self, entry: Entry) -> None:
        """The first hold of an entry that is ready begins."""

    @abstractmethod
    def _unheld_now(self, entry: Entry) -> None:
        """The last hold of an entry that is ready has ended."""

    @abstractmethod
    def _free(self, entry: Entry) -> None:
        """Nobody uses the bytes of `entry` any more."""

    def _hold(self, entry: Entry) -> None:
        if not (entry.leases or entry.pins):
            self.held += 1
            if entry.state is State.READY:
                self._held_now(entry)

    def _let_go(self, entry: Entry) -> None:
        if not (entry.leases or entry.pins):
            self.held -= 1
            if entry.state is State.READY:
                self._unheld_now(entry)
            elif entry.state is State.PROMISED:
                entry.step("end of the last hold")
                self._free(entry)
