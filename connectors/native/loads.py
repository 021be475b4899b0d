"""What requests look up and load: gathered from vLLM's questions, asked in one message each."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

from connectors.native import wire
from connectors.native.allowance import Allowance
from connectors.native.lookups import Lookups, has_pins
from connectors.native.session import Session

# An answer to a lookup may be this much later than its budget for L2.
LATE_SECONDS: Final = 0.25
# Of a request's id that goes into the name of its pins.
NAME_LENGTH: Final = 128
NAMES_KEPT: Final = 4096


class Loads:
    """The lookups of all requests; each waits at most `budget` seconds.

    `missing(request, chunks)` is told how many chunks an answer leaves to be computed.
    """

    def __init__(
        self, session: Session, budget: float, missing: Callable[[str, int], None]
    ) -> None:
        self._session, self._budget, self._missing = session, budget, missing
        self._lookups: dict[str, Lookups] = {}
        self._to_ask: dict[str, None] = {}
        # What a reset cut off from its completion: it may still be copying.
        self._cut: list[Lookups] = []
        self._numbers = itertools.count()
        # By what name each request was looked up last; it stores under that name.
        self._names: OrderedDict[str, str] = OrderedDict()

    def open(self, request: str, now: float) -> Lookups | None:
        """What is known for `request`, to be asked until the next poll; None: nothing can be."""
        if not self._session.usable:
            return None
        lookups = self._lookups.get(request)
        if lookups is None:
            name = self._new_name(request)
            lookups = Lookups(name, self._session.era, now + self._budget)
            self._lookups[request] = lookups
        self._to_ask[request] = None
        return lookups

    def name_of(self, request: str) -> str:
        """What `request` is to publish under: the sidecar knows the order of its sequence by it."""
        return self._names.get(request) or self._new_name(request)

    def was_below(self, request: str, key: bytes) -> bool:
        """Whether a hit was in L2 when it was first asked for, as far as that is known."""
        lookups = self._lookups.get(request)
        return lookups is not None and key in lookups.from_below

    def begin(self, request: str, keys: Collection[bytes]) -> list[int]:
        """The slots of hits of this step; their pins last until `complete`."""
        lookups = self._lookups[request]
        slots = lookups.slots(list(keys))
        lookups.loading = lookups.used = True
        return slots

    def complete(self, request: str) -> bool:
        """The load of `request` has ended. False: it is one that is not known any more."""
        lookups = self._lookups.get(request)
        if lookups is None or not lookups.loading:
            return False
        lookups.loading = False
        self._end(request)
        return True

    def decided(self, request: str) -> None:
        """vLLM will not ask again: unless a load is under way the pins end."""
        lookups = self._lookups.get(request)
        if lookups is not None and not lookups.loading:
            self._end(request)

    def ask(self, now: float, allowance: Allowance) -> None:
        """Send what has been gathered, the oldest first; the rest goes out in the next step."""
        for _ in allowance.pieces():
            if not self._to_ask:
                return
            request = next(iter(self._to_ask))
            del self._to_ask[request]
            lookups = self._lookups.get(request)
            if lookups is not None and self._session.usable:
                self._ask(request, lookups, now)

    def reset(self) -> None:
        """Forget all. What is being copied stays pinned until `reset_has_ended`."""
        for request, lookups in list(self._lookups.items()):
            if lookups.loading:
                self._cut.append(self._lookups.pop(request))
            else:
                self._end(request)

    def reset_has_ended(self) -> None:
        """No worker copies any more for what a reset cut off."""
        self._finish(self._cut)
        self._cut.clear()

    def held(self) -> list[str]:
        """By what names requests have pins, or will have them."""
        return [lookups.name for lookups in (*self._lookups.values(), *self._cut)]

    def voided(self) -> None:
        """All pins have ended. Loads that are under way go on in the old arena."""
        for request in [r for r, lookups in self._lookups.items() if not lookups.loading]:
            del self._lookups[request]

    def disconnected(self) -> None:
        """Answers are lost, and there may be pins that are not known."""
        for request in list(self._lookups):
            self.decided(request)

    def _new_name(self, request: str) -> str:
        name = f"{request[:NAME_LENGTH]}/{next(self._numbers)}"
        self._names[request] = name
        self._names.move_to_end(request)
        if len(self._names) > NAMES_KEPT:
            self._names.popitem(last=False)
        return name

    def _ask(self, request: str, lookups: Lookups, now: float) -> None:
        groups = lookups.question()
        if not groups:
            return
        left = max(lookups.until - now, 0.0)
        payload = wire.Lookup(
            session=self._session.number,
            request=lookups.name,
            budget_ms=int(left * 1000),
            groups=groups,
        )

        def then(frames: Sequence[bytes]) -> None:
            self._said(request, lookups, groups, frames)

        if self._session.ask(wire.LOOKUP, payload, now + left + LATE_SECONDS, then):
            lookups.sent = True
        else:
            lookups.unsent()

    def _said(
        self,
        request: str,
        lookups: Lookups,
        groups: Sequence[wire.Wanted],
        frames: Sequence[bytes],
    ) -> None:
        said = wire.value(frames, list[list[int]])
        if lookups.era != self._session.era:
            return
        if self._lookups.get(request) is not lookups:
            # The request runs without, or is gone; what is pinned since then is given back, too.
            if has_pins(said):
                self._finish([lookups])
            return
        if not said:
            said = [[wire.MISS] * len(wanted.hashes) for wanted in groups]
        if not lookups.answer(said, self._session.last_slot):
            self._session.distrust("a lookup")
            return
        prefixes = (s for w, s in zip(groups, said, strict=True) if not w.windowed)
        self._missing(request, sum(slots.count(wire.MISS) for slots in prefixes))

    def _end(self, request: str) -> None:
        self._finish([self._lookups.pop(request)])

    def _finish(self, ended: Iterable[Lookups]) -> None:
        alive = (each for each in ended if each.sent and each.era == self._session.era)
        requests = [(lookups.name, lookups.used) for lookups in alive]
        if requests:
            payload = wire.Finish(session=self._session.number, requests=requests)
            self._session.owe(wire.FINISH, payload)
