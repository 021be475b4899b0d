"""What an engine's scheduler has at the sidecar: a session, as long as both are alive.

Nothing here waits. Whoever uses it calls `poll` between two of the engine's decisions; answers
arrive there, connections are made and given up there.
"""

import itertools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import zmq

from connectors.native import wire
from connectors.native.allowance import Allowance
from connectors.native.connection import Connection

logger = logging.getLogger("vllm.kv_sidecar")

ANSWER_SECONDS: Final = 3.0  # an answer that is later means that the sidecar is stalled
PING_SECONDS: Final = 2.0
# Until the workers have mapped the arena, and while the sidecar is stalled.
EAGER_PING_SECONDS: Final = 0.1
RECONNECT_SECONDS: Final = 1.0
REFUSED_SECONDS: Final = 10.0
# How long lookups wait for a session that has just begun, or was lost after it had worked.
HOPE_SECONDS: Final = 0.25
# Each stands for something to be done, so none is forgotten while the connection lives.
MOST_ASKED: Final = 1024

Then = Callable[[Sequence[bytes]], None]


class Owner(Protocol):
    """Whom a session tells what becomes of it."""

    def held(self) -> tuple[list[int], list[str]]:
        """All slots and the names of all pins that are still used."""

    def voided(self) -> None:
        """All slots and pins of before have ended."""

    def disconnected(self) -> None:
        """Answers that were under way are lost; slots and pins may still be there."""


@dataclass(slots=True)
class _Question:
    operation: str
    due: float
    then: Then
    overdue: bool = False


def _nothing(_: Sequence[bytes]) -> None:
    """For answers that change nothing."""


class Session:
    """A session at the sidecar that `connect` leads to.

    `introduce()` is the engine's introduction. `era` counts sessions: what belongs to
    an earlier one is void. `usable` says whether questions make sense now. `last_slot` is the
    highest that an object can begin at.
    """

    def __init__(
        self,
        introduce: Callable[[], wire.Attach],
        connect: Callable[[], Connection],
        owner: Owner,
        clock: Callable[[], float],
    ) -> None:
        self._introduce, self._connect, self._owner, self._clock = introduce, connect, owner, clock
        self._connection: Connection | None = None
        self._reading = Allowance(clock)
        self._uids = itertools.count(1)
        self._asked: dict[int, _Question] = {}
        self._next_due = float("inf")
        self._owed: deque[tuple[str, Any]] = deque()
        # How many clears were asked for, sent on this connection or before, and answered.
        self._clears = self._clears_sent = self._clears_answered = 0
        self._attached = self._ready = self._stalled = False
        self._next_attempt = self._next_attach = self._next_ping = 0.0
        self._hope_until = float("inf")  # until the first attempt
        self._complaint = ""
        self.era = 0
        self.number = self.last_slot = 0
        self.server = b""

    @property
    def usable(self) -> bool:
        cleared = self._clears_sent == self._clears
        return self._attached and self._ready and not self._stalled and cleared

    @property
    def begun(self) -> bool:
        """Whether a connection has been tried."""
        return self._next_attempt > 0.0

    @property
    def hopeful(self) -> bool:
        """Not usable, but likely to be in a moment."""
        return not self._stalled and self._clock() < self._hope_until

    def ask(self, operation: str, payload: Any, due: float, then: Then) -> bool:
        """Send a request whose answer goes to `then`. False: it cannot be sent now."""
        uid = next(self._uids)
        if self._connection is None or len(self._asked) >= MOST_ASKED:
            return False
        if not self._connection.send(wire.request(uid, operation, payload)):
            if not self._connection.ended():
                self._stall("does not read what it is sent")
            return False
        self._asked[uid] = _Question(operation, due, then)
        self._next_due = min(self._next_due, due)
        return True

    def owe(self, operation: str, payload: Any) -> None:
        """Send this as soon as possible, a slot or pin ends by it.

        It may be lost with the connection: the next one begins with what is `held`.
        """
        self._owed.append((operation, payload))
        self._pay()

    def clear(self) -> None:
        """Have the sidecar forget all objects: this one, or whichever there is next.

        Nothing is asked of a sidecar that has not been told.
        """
        self._clears += 1
        self._pay()

    def distrust(self, why: str) -> None:
        """The sidecar answered what cannot be: have nothing to do with it for a while."""
        self._complain(f"gave an invalid answer ({why})")
        self._void()
        self._drop()
        self._next_attempt = self._clock() + REFUSED_SECONDS

    def poll(self) -> None:
        """Take what has arrived, and do what is due."""
        now = self._clock()
        if self._receive() and now >= self._next_due:
            self._look_for_overdue(now)
        if self._connection is not None and self._connection.ended():
            self._lose(now, "has closed the connection" if self._attached else "is not there")
        if self._connection is None and now >= self._next_attempt:
            self._begin(now)
        elif not self._attached and now >= self._next_attach:
            self._attach(now)
        self._pay()
        if self._attached and now >= self._next_ping:
            self._ping(now)

    def end_step(self) -> None:
        """What a step may spend on answers, the next one may spend again."""
        self._reading.renew()

    def close(self) -> None:
        """The engine ends. What was reserved is free when its processes are gone."""
        if self._attached:
            self.ask(wire.DETACH, wire.Detach(session=self.number), self._clock(), _nothing)
        self._drop()
        self._next_attempt = float("inf")

    def _receive(self) -> bool:
        """Take what has arrived. False: there is more than this step may spend on it."""
        for _ in self._reading.pieces():
            frames = self._connection.receive() if self._connection is not None else None
            if frames is None:
                return True
            question = self._asked.pop(wire.reply_uid(frames) or 0, None)
            if question is not None:
                self._stalled = False
                question.then(frames)
        return False

    def _look_for_overdue(self, now: float) -> None:
        waiting = [question for question in self._asked.values() if not question.overdue]
        for question in waiting:
            if question.due <= now:
                question.overdue = True
                self._stall(f"does not answer {question.operation}")
        self._next_due = min((q.due for q in waiting if not q.overdue), default=float("inf"))

    def _stall(self, what: str) -> None:
        if not self._stalled:
            self._complain(what)
        self._stalled = True

    def _begin(self, now: float) -> None:
        self._next_attempt = now + RECONNECT_SECONDS
        self._hope_until = min(self._hope_until, now + HOPE_SECONDS)
        try:
            self._connection = self._connect()
        except (zmq.ZMQError, OSError) as error:
            self._complain(f"cannot be connected to ({error})")
            self._hope_until = 0.0
            return
        self._attach(now)

    def _attach(self, now: float) -> None:
        self._next_attach = float("inf")
        introduction = self._introduce()

        def then(frames: Sequence[bytes]) -> None:
            self._attach_said(introduction.object_bytes, frames)

        self.ask(wire.ATTACH, introduction, now + ANSWER_SECONDS, then)

    def _attach_said(self, object_bytes: int, frames: Sequence[bytes]) -> None:
        said = wire.value(frames, wire.Attached)
        if said is None or said.session <= 0:
            self._complain(f"refuses this engine ({said.why if said else 'no native protocol'})")
            self._next_attach = self._clock() + REFUSED_SECONDS
            self._hope_until = 0.0
            return
        resumed = (said.server, said.session) == (self.server, self.number)
        if not resumed:
            self._void()
            self.server, self.number = said.server, said.session
        room = said.arena_bytes - object_bytes
        self.last_slot = min(room // wire.SLOT_BYTES, wire.LAST_SLOT)
        self._attached = True
        self._next_ping = 0.0
        if resumed:
            self._resume()
        self._become(said.ready)

    def _resume(self) -> None:
        """Say all that is held: what the last connection lost is free by that.

        No slot and no pin that is not named here may be named later.
        """
        self._owed.clear()
        slots, requests = self._owner.held()
        payload = wire.Resume(session=self.number, slots=slots, requests=requests)
        self.ask(wire.RESUME, payload, self._clock() + ANSWER_SECONDS, _nothing)

    def _ping(self, now: float) -> None:
        if any(question.operation == wire.PING for question in self._asked.values()):
            return
        self._next_ping = now + (PING_SECONDS if self.usable else EAGER_PING_SECONDS)
        self.ask(wire.PING, wire.Ping(session=self.number), now + ANSWER_SECONDS, self._ping_said)

    def _ping_said(self, frames: Sequence[bytes]) -> None:
        said = wire.value(frames, wire.Pong)
        if said is not None and said.known and said.server == self.server:
            self._become(said.ready)
            return
        self._lose(self._clock(), "does not know this engine any more")

    def _become(self, ready: bool) -> None:
        if ready and not self._ready:
            self._complaint = ""
            logger.info("the sidecar serves this engine")
        self._ready = ready

    def _pay(self) -> None:
        if self._attached and not self._stalled:
            self._send_clear()
        while self._owed and self._attached and not self._stalled:
            operation, payload = self._owed[0]
            if not self.ask(operation, payload, self._clock() + ANSWER_SECONDS, _nothing):
                return
            self._owed.popleft()

    def _send_clear(self) -> None:
        clears = self._clears

        def then(_: Sequence[bytes]) -> None:
            self._clears_answered = clears

        due = self._clock() + ANSWER_SECONDS
        if self._clears_sent < clears and self.ask(wire.CLEAR, True, due, then):
            self._clears_sent = clears

    def _lose(self, now: float, why: str) -> None:
        worked = self._attached
        self._complain(why)
        self._drop()
        self._owner.disconnected()
        self._hope_until = now + HOPE_SECONDS if worked else 0.0
        if worked:
            self._next_attempt = min(self._next_attempt, now + EAGER_PING_SECONDS)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._asked.clear()
        self._clears_sent = self._clears_answered
        self._next_due = float("inf")
        self._attached = self._ready = self._stalled = False

    def _void(self) -> None:
        self._attached = self._ready = False
        self._owed.clear()
        self.era += 1
        self._owner.voided()

    def _complain(self, what: str) -> None:
        """Once for each thing that is wrong, until it has worked again."""
        if what != self._complaint:
            logger.warning("the sidecar %s: this engine goes on without it", what)
        self._complaint = what
