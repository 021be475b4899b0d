"""The engines of the native door: a scheduler process and one worker process a rank.

An engine may use the arena once every rank has told that it has it mapped, so that no copy that
its scheduler plans can fail. What it holds (slots that it writes to, objects that it reads) is its
own until it gives it back, or until none of its worker processes has the arena open any more: the
end of a connection frees nothing, for the processes may still copy.
"""

import hashlib
import itertools
from collections import OrderedDict
from dataclasses import dataclass, field

from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.engines.attachments import Attachments
from sidecar.wire.native import Attach, Join

_DOMAIN = b"kv-sidecar native objects, version 1"
# Of an engine, of which is remembered what they looked up; of which something is pinned, too.
_MAX_REQUESTS, _MAX_HOLDING = 1024, 4096
# What they looked up: hashes of all engines together, one engine half of them.
_MAX_HASHES = 2**20


@dataclass(eq=False, slots=True)
class Member:
    """One worker process. `client` is its connection, `shm_name` what it opens the arena by.

    `scheduler` is the incarnation of the process that it copies for, once that is known. An id
    of an engine may come again, with workers of the one before still alive.
    """

    number: int
    join: Join
    client: bytes
    shm_name: str
    mapped: bool = False
    scheduler: bytes | None = None

    @property
    def attachment(self) -> int:
        """What it is called among the attachments, where ids of lmcache's workers are >= 0."""
        return -self.number


@dataclass(eq=False, slots=True)
class NativeRequest:
    """What a request has looked up: the hashes by group, in order, and what is pinned for it.

    `waiting` lookups are under way; `finished` counts how often it has given all back.
    """

    sequences: dict[int, list[bytes]] = field(default_factory=dict)
    pins: dict[Entry, None] = field(default_factory=dict)
    waiting: int = 0
    finished: int = 0

    @property
    def idle(self) -> bool:
        """Whether it holds nothing, and waits for nothing."""
        return not (self.pins or self.waiting)

    @property
    def hashes(self) -> int:
        """How many are remembered of it."""
        return sum(map(len, self.sequences.values()))


@dataclass(eq=False, slots=True)
class Engine:
    """One engine that has attached. `members` are its worker processes by rank.

    `former` are worker processes whose place others have taken, and which may still copy.
    `reserved` are slots that it writes to, by their number; `requests` the latest is last, of
    which so many `hashes` are remembered. `lost`: its scheduler has gone for good, and nothing of
    it becomes visible any more. Bytes are of the arena, headers included; what two requests have
    pinned counts twice.
    """

    session: int
    attach: Attach
    client: bytes
    members: dict[int, Member] = field(default_factory=dict)
    former: list[Member] = field(default_factory=list)
    spaces: tuple[SpaceKey, ...] = ()
    reserved: dict[int, Entry] = field(default_factory=dict)
    reserved_bytes: int = 0
    pinned_bytes: int = 0
    hashes: int = 0
    requests: OrderedDict[str, NativeRequest] = field(default_factory=OrderedDict)
    unreachable_since: float | None = None
    lost: bool = False

    @property
    def ready(self) -> bool:
        """Whether all ranks have the arena mapped."""
        mapped = sum(member.mapped for member in self.members.values())
        return mapped == self.attach.ranks and not self.lost

    @property
    def processes(self) -> list[Member]:
        """All that may still copy."""
        return [*self.members.values(), *self.former]

    def reserve(self, slot: int, entry: Entry) -> None:
        """The slot is the engine's to write to."""
        self.reserved[slot] = entry
        self.reserved_bytes += entry.slot_bytes

    def take(self, slot: int) -> Entry | None:
        """The slot is not the engine's any more; None if it never was."""
        entry = self.reserved.pop(slot, None)
        if entry is not None:
            self.reserved_bytes -= entry.slot_bytes
        return entry

    def request(self, name: str) -> NativeRequest | None:
        """What is known of a request, the latest from now on; None: too many hold something."""
        if name not in self.requests:
            if len(self.requests) >= _MAX_REQUESTS:
                self._forget_idle()
            if len(self.requests) >= _MAX_HOLDING:
                return None
            self.requests[name] = NativeRequest()
        self.requests.move_to_end(name)
        return self.requests[name]

    def sequence(self, name: str, group: int) -> list[bytes]:
        """What a request has looked up of a group, as far as that is remembered."""
        if name not in self.requests:
            return []
        self.requests.move_to_end(name)
        return self.requests[name].sequences.get(group, [])

    def forget_sequences(self) -> None:
        """Of one request: of the oldest that has finished, else of the oldest."""
        known = [each for each in self.requests.values() if each.sequences]
        victim = next((each for each in known if each.finished and each.idle), known[0])
        self.hashes -= victim.hashes
        victim.sequences.clear()

    def _forget_idle(self) -> None:
        name = next((name for name, each in self.requests.items() if each.idle), None)
        if name is not None:
            self.hashes -= self.requests.pop(name).hashes

    def may_touch(self, attachments: Attachments) -> bool:
        """Whether a process of it may still write to the arena, or read from it."""
        return any(attachments.may_touch(member.attachment) for member in self.processes)


class Engines:
    """All engines and their worker processes. Workers may join before their scheduler attaches."""

    def __init__(self) -> None:
        self.by_session: dict[int, Engine] = {}
        self.by_member: dict[int, Member] = {}
        self._numbers = itertools.count(1)

    def remember(
        self, engine: Engine, known: NativeRequest, group: int, names: list[bytes]
    ) -> None:
        """A request has looked up this sequence. It forgets others where there are too many."""
        engine.hashes += len(names) - len(known.sequences.get(group, ()))
        known.sequences[group] = names
        while engine.hashes > _MAX_HASHES // 2:
            engine.forget_sequences()
        engines = self.by_session.values()
        while sum(each.hashes for each in engines) > _MAX_HASHES:
            max(engines, key=lambda each: each.hashes).forget_sequences()

    def attached(self, attach: Attach) -> Engine | None:
        """The engine of this very process, if it has attached before."""
        name = (attach.engine, attach.incarnation)
        engines = self.by_session.values()
        return next((e for e in engines if _name(e) == name and not e.lost), None)

    def rival(self, attach: Attach) -> Engine | None:
        """Another process that is attached under the same engine id."""
        engines = self.by_session.values()
        return next((e for e in engines if e.attach.engine == attach.engine and not e.lost), None)

    def add(self, attach: Attach, client: bytes) -> Engine:
        engine = Engine(next(self._numbers), attach, client)
        self.by_session[engine.session] = engine
        for member in self.by_member.values():
            self._place(member, engine)
        return engine

    def joined(self, join: Join) -> Member | None:
        """The member of this very process, if it has joined before."""
        members = self.by_member.values()
        same = (m for m in members if _process(m.join) == _process(join))
        return next((m for m in same if m.join.layout == join.layout), None)

    def holder(self, join: Join) -> Member | None:
        """Another process that has joined as this rank of the engine."""
        members = self.by_member.values()
        place = (join.engine, join.rank)
        return next((m for m in members if (m.join.engine, m.join.rank) == place), None)

    def next_number(self) -> int:
        return next(self._numbers)

    def is_over(self, member: Member) -> bool:
        """Whether the scheduler that it copies for has gone for good."""
        name = (member.join.engine, member.scheduler)
        engines = self.by_session.values()
        return member.scheduler is not None and not any(
            _name(e) == name and not e.lost for e in engines
        )

    def join(self, member: Member) -> None:
        engines = self.by_session.values()
        processes = [m for e in engines for m in e.processes]
        same = (m for m in processes if _process(m.join) == _process(member.join))
        member.scheduler = next((m.scheduler for m in same), None)
        self.by_member[member.number] = member
        for engine in self.by_session.values():
            self._place(member, engine)

    def leave(self, member: Member) -> None:
        """Its place may be another process's; what it may still touch stays the engine's."""
        del self.by_member[member.number]
        for engine in self.by_session.values():
            if engine.members.get(member.join.rank) is member:
                del engine.members[member.join.rank]
                engine.former.append(member)
                engine.spaces = ()  # whoever comes may mean something else

    def of(self, member: Member) -> Engine | None:
        """The engine of a worker process, if its scheduler has attached."""
        engines = self.by_session.values()
        mine = (e for e in engines if e.members.get(member.join.rank) is member)
        return next((e for e in mine if not e.lost), None)

    def settle(self, engine: Engine) -> None:
        """Give its objects their spaces, once all ranks are there and have said what they hold."""
        if engine.ready and not engine.spaces:
            engine.spaces = _spaces(engine)

    def _place(self, member: Member, engine: Engine) -> None:
        join, attach = member.join, engine.attach
        meant = (join.engine, join.ranks, join.object_bytes)
        fits = meant == (attach.engine, attach.ranks, attach.object_bytes) and not engine.lost
        if fits and self._is_of(member, engine):
            engine.members[join.rank] = member
            member.scheduler = attach.incarnation

    def _is_of(self, member: Member, engine: Engine) -> bool:
        """Whether the process is a worker of this scheduler process, and not of a later one.

        A scheduler has one process a rank for all its life.
        """
        if member.scheduler is not None:
            return member.scheduler == engine.attach.incarnation
        lives = [e for e in self.by_session.values() if _name(e) == _name(engine)]
        return all(m.join.rank != member.join.rank for e in lives for m in e.processes)


def _name(engine: Engine) -> tuple[str, bytes]:
    return engine.attach.engine, engine.attach.incarnation


def _process(join: Join) -> tuple[str, int, bytes]:
    return join.engine, join.rank, join.incarnation


def _spaces(engine: Engine) -> tuple[SpaceKey, ...]:
    """One a KV group. Objects of other meaning, or of lmcache's clients, are in other spaces."""
    digest = hashlib.blake2b(_DOMAIN, digest_size=16)
    digest.update(engine.attach.identity)
    digest.update(engine.attach.object_bytes.to_bytes(8, "big"))
    for rank in range(engine.attach.ranks):
        digest.update(engine.members[rank].join.layout)
    fingerprint, attach = digest.digest(), engine.attach
    return tuple(
        SpaceKey(attach.model, attach.ranks, group, "", fingerprint)
        for group in range(attach.groups)
    )
