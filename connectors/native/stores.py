"""Where the workers write what is new, and what becomes of it when they have written it."""

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from connectors.native import wire
from connectors.native.lookups import group_of, hash_of
from connectors.native.pool import Pool
from connectors.native.present import Present
from connectors.native.session import ANSWER_SECONDS, Session

# How often vLLM is told to offer chunks again, while slots for them are being reserved.
MOST_DEFERRALS: Final = 3


@dataclass(frozen=True, slots=True)
class _Store:
    """A chunk that the workers are writing."""

    order: int
    slot: int
    era: int


class Stores:
    """The stores of all requests, of objects of `object_bytes`, into slots reserved ahead."""

    def __init__(self, session: Session, object_bytes: int) -> None:
        self._session, self._pool = session, Pool(object_bytes)
        self._storing: dict[bytes, _Store] = {}
        self._present = Present()
        self._deferrals: dict[str, int] = {}
        # What a reset cut off from its completion: it may still be copying.
        self._cut: list[_Store] = []
        self._orders = itertools.count()

    def expect(self, request: str, chunks: int) -> None:
        """`request` is going to store this many more."""
        self._pool.expect(request, self._pool.expected_of(request) + chunks)

    def begin(
        self,
        request: str,
        keys: Collection[bytes],
        end_of: Callable[[bytes], int | None],
        now: float,
    ) -> tuple[list[bytes], list[int]] | None:
        """Those of `keys` that are to be stored, in their order, and their slots.

        None: they are to be offered again in the next step. `end_of` is where a key's chunk ends.
        """
        if not self._session.usable:
            return [], []
        new = [k for k in keys if k not in self._storing and not self._present.has(k, now)]
        self._pool.note_demand(len(new), now)
        if len(new) > len(self._pool) and self._defer(request, now):
            return None
        self._deferrals.pop(request, None)
        self.expect(request, -len(keys))
        slots = self._pool.take(len(new))
        if len(slots) < len(new):
            # The heads of all groups' sequences: a chunk is worth nothing without those before it.
            kept = set(sorted(new, key=lambda key: end_of(key) or 0)[: len(slots)])
            new = [key for key in new if key in kept]
        for key, slot in zip(new, slots, strict=True):
            self._storing[key] = _Store(next(self._orders), slot, self._session.era)
        return new, slots

    def complete(self, request: str, keys: Collection[bytes], success: bool, now: float) -> bool:
        """All ranks have written `keys`, or not. False: none of them is known any more."""
        ended = [(self._storing.pop(key), key) for key in keys if key in self._storing]
        alive = [pair for pair in ended if pair[0].era == self._session.era]
        if not success:
            self._return(store.slot for store, _ in alive)
        elif alive:
            alive.sort(key=lambda pair: pair[0].order)
            items = [(group_of(key), hash_of(key), store.slot) for store, key in alive]
            payload = wire.Publish(session=self._session.number, request=request, items=items)
            self._session.owe(wire.PUBLISH, payload)
            for _, key in alive:
                self._present.add(key, now)
        return bool(alive)

    def finished(self, request: str) -> None:
        """`request` stores nothing any more."""
        self._pool.expect(request, 0)
        self._deferrals.pop(request, None)

    def forget(self, key: bytes) -> None:
        """The sidecar does not have it any more: it is worth storing again."""
        self._present.discard(key)

    def keep_pool(self, now: float, short: bool = False) -> None:
        """Reserve ahead, or give back. `short`: there is too little for a store."""
        if not self._session.usable:
            return
        self._return(self._pool.surplus())
        count = self._pool.deficit(now, short)
        if count <= 0:
            return
        payload = wire.Reserve(session=self._session.number, count=count)
        era = self._session.era

        def then(frames: Sequence[bytes]) -> None:
            if era == self._session.era:
                self._reserved(count, frames, now)

        self._pool.refilling = self._session.ask(wire.RESERVE, payload, now + ANSWER_SECONDS, then)

    def reset(self) -> None:
        """Forget all. What is being written stays reserved until `reset_has_ended`."""
        self._cut += self._storing.values()
        self._storing.clear()
        self._present.clear()

    def reset_has_ended(self) -> None:
        """No worker writes any more what a reset cut off."""
        self._return(store.slot for store in self._cut if store.era == self._session.era)
        self._cut.clear()

    def held(self) -> list[int]:
        """All slots that a worker may write to, or will be told to write to.

        Also those of an earlier session: it may have been the same to the sidecar.
        """
        writing = [store.slot for store in (*self._storing.values(), *self._cut)]
        return self._pool.slots + writing

    def voided(self) -> None:
        """All slots have ended. Stores that are under way end in the old arena, and unseen."""
        self._pool.clear()
        self._present.clear()

    def disconnected(self) -> None:
        """The answer to a reservation is lost, and perhaps what was published."""
        self._pool.refilling = False
        self._present.clear()

    def _reserved(self, count: int, frames: Sequence[bytes], asked: float) -> None:
        self._pool.refilling = False
        slots = wire.value(frames, list[int]) or []
        if len(slots) > count or not self._pool.refill(slots, self._session.last_slot, asked):
            self._session.distrust("a reservation")

    def _defer(self, request: str, now: float) -> bool:
        """Whether slots for a store are on their way, and it has not been put off too often."""
        self.keep_pool(now, short=True)
        if not self._pool.refilling:
            return False
        self._deferrals[request] = self._deferrals.get(request, 0) + 1
        return self._deferrals[request] <= MOST_DEFERRALS

    def _return(self, slots: Iterable[int]) -> None:
        given = list(slots)
        if given:
            self._session.owe(wire.RETURN, wire.Return(session=self._session.number, slots=given))
