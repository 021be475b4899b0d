"""A sidecar in memory at the native door, as bad as a test wants it, and what is in its arena.

Messages wait until they are delivered, answers of lookups may be held, connections break, lives
end. It stands in for what the real server does only by accident: the tests of the protocol itself
run against the real one.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

OBJECT_BYTES = 64 << 20
STEP = OBJECT_BYTES // 4096
OBJECTS = 24  # in an arena
MISS, BELOW = -1, -2

Key = tuple[int, bytes]
Told = tuple[int, bytes]  # media and description
MOST_TOLD = 3


@dataclass(eq=False)
class Seat:
    """A session: what its engine writes to, what is pinned for its requests, what it was told."""

    number: int
    reserved: set[int] = field(default_factory=set)
    pins: dict[str, dict[Key, int]] = field(default_factory=dict)
    told: dict[Key, Told] | None = None


class Life:
    """One life of the server. `arena` has what is in each slot, as its workers wrote it."""

    def __init__(self, number: int) -> None:
        self.server = number.to_bytes(16, "big")
        self.arena: dict[int, Key | None] = dict.fromkeys(range(0, OBJECTS * STEP, STEP))
        self.objects: dict[Key, int] = {}
        self.below: set[Key] = set()
        self.descriptions: dict[Key, bytes] = {}
        self.seat: Seat | None = None
        # Sessions that were given up: their processes live, so nothing of theirs is free.
        self.former: list[Seat] = []
        self.ready = True

    @property
    def seats(self) -> list[Seat]:
        return [*self.former, *([self.seat] if self.seat else [])]

    def is_reserved(self, slot: int) -> bool:
        return any(slot in seat.reserved for seat in self.seats)

    def is_pinned(self, slot: int) -> bool:
        return any(slot in p.values() for seat in self.seats for p in seat.pins.values())

    def holdings(self) -> dict[Key, Told]:
        """Where each object is, and what is said of it."""
        return {
            key: ((key in self.objects) + 2 * (key in self.below), self.descriptions.get(key, b""))
            for key in self.objects.keys() | self.below
        }

    def free(self) -> list[int]:
        used = set(self.objects.values())
        return [
            slot
            for slot in self.arena
            if slot not in used and not self.is_reserved(slot) and not self.is_pinned(slot)
        ]

    def evict(self, key: Key) -> None:
        """Out of the L1, down to L2. Pinned bytes stay where they are."""
        slot = self.objects.pop(key)
        self.below.add(key)
        if not self.is_pinned(slot):
            self.arena[slot] = None


class FakeConnection:
    def __init__(self, sidecar: FakeSidecar) -> None:
        self._sidecar = sidecar
        self.sent: deque[list[bytes]] = deque()
        self.answers: deque[list[bytes]] = deque()
        self.broken = not sidecar.listens

    def send(self, frames: Sequence[bytes]) -> bool:
        if self.broken or len(self.sent) >= self._sidecar.room:
            return False
        self.sent.append(list(frames))
        return True

    def receive(self) -> list[bytes] | None:
        return self.answers.popleft() if self.answers else None

    def ended(self) -> bool:
        return self.broken

    def wait(self, milliseconds: int) -> None:
        raise AssertionError("a manager waits")

    def close(self) -> None:
        self.broken = True


class FakeSidecar:
    """`garbage` is the next answer, or makes it of the right one; `replies_lost` tells that a
    client cannot know all, and has not said since what it knows."""

    def __init__(self) -> None:
        self.lives = [Life(1)]
        self.listens = True
        self.room = 20
        self.garbage: Any = None
        self.hold_lookups = False
        self.held: list[tuple[FakeConnection, list[bytes], dict[str, Any]]] = []
        self.replies_lost = False
        self.connection: FakeConnection | None = None
        self._sessions = itertools.count(1)
        self._looked_up: dict[str, int] = {}  # vLLM's request -> the number of its latest lookup

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def life_of(self, server: bytes) -> Life:
        return next(life for life in self.lives if life.server == server)

    def connect(self) -> FakeConnection:
        self.connection = FakeConnection(self)
        return self.connection

    def deliver(self, count: int = 1000) -> None:
        """Serve so many messages that wait."""
        connection = self.connection
        for _ in range(count):
            if connection is None or connection.broken or not connection.sent:
                return
            frames = connection.sent.popleft()
            operation = msgspec.msgpack.decode(frames[1])
            payload = msgspec.msgpack.decode(frames[2])
            if operation == "native_lookup" and self.hold_lookups:
                self.held.append((connection, frames, payload))
                continue
            self._answer(connection, frames, getattr(self, f"_{operation}")(payload))

    def release(self) -> None:
        """Answer the lookups that are held, whatever their requests have done meanwhile."""
        held, self.held = self.held, []
        for connection, frames, payload in held:
            self._answer(connection, frames, self._native_lookup(payload))

    def break_connection(self) -> None:
        if self.connection is not None and not self.connection.broken:
            self.connection.broken = True
            self.connection.answers.clear()
        self.held.clear()

    def restart(self) -> None:
        self.break_connection()
        self.lives.append(Life(len(self.lives) + 1))

    def forget(self) -> None:
        """Give the session up."""
        if self.life.seat is not None:
            self.life.former.append(self.life.seat)
            self.life.seat = None

    def _answer(self, connection: FakeConnection, frames: list[bytes], value: Any) -> None:
        if self.garbage is not None:
            garbage, self.garbage, self.replies_lost = self.garbage, None, True
            value = garbage(value) if callable(garbage) else garbage
        encoded = value if isinstance(value, bytes) else msgspec.msgpack.encode(value)
        if not connection.broken:
            connection.answers.append([*frames[:2], encoded])

    def _seat(self, payload: dict[str, Any]) -> Seat | None:
        seat = self.life.seat
        return seat if seat is not None and seat.number == payload["session"] else None

    def _native_attach(self, payload: dict[str, Any]) -> dict[str, Any]:
        if self.life.seat is None:
            self.life.seat = Seat(next(self._sessions))
            self.replies_lost = False
        session, life = self.life.seat.number, self.life
        return {
            "session": session, "server": life.server, "ready": life.ready, "why": "",
            "arena_bytes": len(life.arena) * OBJECT_BYTES,
        }  # fmt: skip

    def _native_ping(self, payload: dict[str, Any]) -> dict[str, Any]:
        known = self._seat(payload) is not None
        life = self.life
        return {"server": life.server, "known": known, "ready": known and life.ready}

    def _native_reserve(self, payload: dict[str, Any]) -> list[int]:
        seat = self._seat(payload)
        if seat is None or not self.life.ready:
            return []
        given = self.life.free()[: payload["count"]]
        seat.reserved.update(given)
        return given

    def _native_publish(self, payload: dict[str, Any]) -> int:
        seat, life = self._seat(payload), self.life
        request, _, number = payload["request"].rpartition("/")
        assert int(number) >= self._looked_up.get(request, 0), "stored as another sequence"
        for group, name, slot in payload["items"] if seat else ():
            assert slot in seat.reserved, "published, and not the session's"
            seat.reserved.discard(slot)
            assert life.arena[slot] == (group, name), "published before it was written"
            life.objects.setdefault((group, name), slot)
        return len(payload["items"])

    def _native_return(self, payload: dict[str, Any]) -> bool:
        seat = self._seat(payload)
        for slot in payload["slots"] if seat else ():
            assert slot in seat.reserved, "returned, and not the session's"
            seat.reserved.discard(slot)
            self.life.arena[slot] = None
        return seat is not None

    def _native_lookup(self, payload: dict[str, Any]) -> list[list[int]]:
        seat = self._seat(payload)
        if seat is None:
            return []
        request, _, number = payload["request"].rpartition("/")
        self._looked_up[request] = max(int(number), self._looked_up.get(request, 0))
        pins = seat.pins.setdefault(payload["request"], {})
        return [self._found(group, pins) for group in payload["groups"]]

    def _found(self, asked: dict[str, Any], pins: dict[Key, int]) -> list[int]:
        life, slots = self.life, []
        for name in asked["hashes"]:
            key = asked["group"], name
            if key in life.below and key not in life.objects:
                if asked["windowed"] and not asked["load"]:
                    slots.append(BELOW)
                    continue
                if life.free():
                    life.objects[key] = life.free()[0]
                    life.arena[life.objects[key]] = key
            slot = life.objects.get(key, MISS) if life.ready else MISS
            if slot >= 0:
                pins[key] = slot
            slots.append(slot)
            if slot == MISS and not asked["windowed"]:
                break
        return slots + [MISS] * (len(asked["hashes"]) - len(slots))

    def _native_finish(self, payload: dict[str, Any]) -> bool:
        seat = self._seat(payload)
        for name, _ in payload["requests"] if seat else ():
            seat.pins.pop(name, None)
        return seat is not None

    def _native_resume(self, payload: dict[str, Any]) -> bool:
        seat = self._seat(payload)
        if seat is not None:
            for slot in seat.reserved - set(payload["slots"]):
                seat.reserved.discard(slot)
                self.life.arena[slot] = None
            seat.pins = {name: seat.pins.get(name, {}) for name in payload["requests"]}
            self.replies_lost = False
        return seat is not None

    def _native_describe(self, payload: dict[str, Any]) -> int:
        if self._seat(payload) is None:
            return 0
        described = {(group, name): data for group, name, data in payload["items"]}
        self.life.descriptions |= described
        return len(described)

    def _native_holdings(self, payload: dict[str, Any]) -> dict[str, Any]:
        seat = self._seat(payload)
        if seat is None or not self.life.ready:
            return {"items": [], "begun": False, "whole": False, "more": False}
        begun = payload["begin"] or seat.told is None
        told = seat.told = {} if begun or seat.told is None else seat.told
        there = self.life.holdings()
        nowhere = 0, b""
        news = [
            (group, name, *there.get((group, name), nowhere))
            for group, name in sorted(there.keys() | told.keys())
            if there.get((group, name), nowhere) != told.get((group, name), nowhere)
        ]
        for group, name, *now in news[:MOST_TOLD]:
            told[group, name] = now[0], now[1]
        more = len(news) > MOST_TOLD
        return {"items": news[:MOST_TOLD], "begun": begun, "whole": not more, "more": more}

    def _native_detach(self, payload: dict[str, Any]) -> bool:
        self.forget()
        return True

    def _clear(self, payload: bool) -> None:
        for key in list(self.life.objects):
            self.life.evict(key)
        self.life.below.clear()
