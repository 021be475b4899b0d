"""Who is of the native door: attach, join, mapped, ping, detach, and who is gone."""

import logging
import secrets
from collections.abc import Callable

from sidecar.handlers.core import Core
from sidecar.handlers.native.engines import Engine, Engines, Member
from sidecar.wire import native as wire
from sidecar.wire.endpoint import Refused, Request

log = logging.getLogger(__name__)

_MAX_ENGINES, _MAX_MEMBERS = 256, 4096
_A_CONNECTION = 16  # engines, and worker processes
# How long a process may stay without its connection: it comes back within seconds.
_GONE_SECONDS = 30.0
_VERSION_ADVICE = f"this kv-sidecar speaks version {wire.VERSION} of the native protocol"


class Membership:
    """native_attach, native_join, native_mapped, native_ping, native_detach.

    `let_go(engine)` frees all that an engine holds: no process can touch it any more.
    """

    def __init__(self, core: Core, engines: Engines) -> None:
        self._core = core
        self._engines = engines
        self.server = secrets.token_bytes(16)  # tells this life of the server from others

    def attach(self, request: Request, ask: wire.Attach) -> wire.Attached:
        """A scheduler process, new or once more. What it had before is its own again."""
        self._core.refuse_when_closing()
        why = self._why_not_attach(request, ask)
        if why:
            self._core.refusals.add("native_attach", "refused", why)
            return wire.Attached(0, self.server, why=why)
        engine = self._engines.attached(ask)
        if engine is None:
            engine = self._engines.add(ask, request.client)
            log.info("engine %d of %s attaches", engine.session, ask.model)
        engine.client, engine.unreachable_since = request.client, None
        self._engines.settle(engine)
        arena_bytes = self._core.arena.size
        return wire.Attached(engine.session, self.server, engine.ready, "", arena_bytes)

    def join(self, request: Request, ask: wire.Join) -> wire.Joined:
        """A worker process, new or once more: by which name it is to open the arena."""
        self._core.refuse_when_closing()
        why = self._why_not_join(request, ask)
        if why:
            self._core.refusals.add("native_join", "refused", why)
            return wire.Joined(0, self.server, why=why)
        member = self._engines.joined(ask)
        if member is None:
            holder = self._engines.holder(ask)
            if holder is not None:
                self._engines.leave(holder)
            number = self._engines.next_number()
            name = self._core.arena_name(-number)
            member = Member(number, ask, request.client, name)
            self._engines.join(member)
        member.client = request.client
        return wire.Joined(member.number, self.server, member.shm_name, self._core.arena.size)

    def mapped(self, request: Request, ask: wire.Mapped) -> bool:
        """A worker says that it has the arena mapped; the kernel says whether it may have."""
        member = self._member(request, ask.member)
        if ask.server != self.server or not self._core.attachments.may_touch(member.attachment):
            raise Refused("not_mapped", f"member {member.number}")
        member.mapped = True
        engine = self._engines.of(member)
        if engine is not None:
            self._engines.settle(engine)
        return True

    def ping(self, request: Request, ask: wire.Ping) -> wire.Pong:
        engine = self._engines.by_session.get(ask.session)
        if engine is not None:
            known = engine.client == request.client and not engine.lost
            return wire.Pong(self.server, known, known and engine.ready)
        member = self._engines.by_member.get(ask.member)
        known = member is not None and member.client == request.client
        return wire.Pong(self.server, known, known and member is not None and member.mapped)

    def detach(self, request: Request, ask: wire.Detach) -> bool:
        """The engine says that it ends: what it has reserved becomes nothing."""
        self._lose(self.engine(request, ask.session))
        return True

    def engine(self, request: Request, session: int) -> Engine:
        """The engine that asks. Raises Refused if the connection does not speak for it."""
        self._core.refuse_when_closing()
        engine = self._engines.by_session.get(session)
        if engine is None or engine.lost or engine.client != request.client:
            raise Refused("unknown_session", f"session {session}")
        return engine

    def tick(
        self,
        now: float,
        is_connected: Callable[[bytes], bool],
        let_go: Callable[[Engine], None],
    ) -> None:
        """Once a second: end what nobody can touch any more."""
        for engine in list(self._engines.by_session.values()):
            self._watch(engine, now, is_connected)
            if engine.lost and not engine.may_touch(self._core.attachments):
                let_go(engine)
                del self._engines.by_session[engine.session]
        for member in list(self._engines.by_member.values()):
            gone = not is_connected(member.client)
            if gone and not self._core.attachments.may_touch(member.attachment):
                self._engines.leave(member)

    def attachments(self) -> set[int]:
        """Whose names of the arena are still needed."""
        engines = self._engines.by_session.values()
        members = {m.attachment for m in self._engines.by_member.values()}
        return members.union(*({m.attachment for m in e.processes} for e in engines))

    def _watch(self, engine: Engine, now: float, is_connected: Callable[[bytes], bool]) -> None:
        if is_connected(engine.client):
            engine.unreachable_since = None
            return
        if engine.unreachable_since is None:
            engine.unreachable_since = now
        away = now - engine.unreachable_since
        if away >= _GONE_SECONDS or not engine.may_touch(self._core.attachments):
            self._lose(engine)

    def _lose(self, engine: Engine) -> None:
        """Nothing that it was storing becomes visible; its slots wait for its processes."""
        if not engine.lost:
            engine.lost = True
            log.info("engine %d of %s is gone", engine.session, engine.attach.model)
            for entry in engine.reserved.values():
                self._core.l1.withdraw(entry)

    def _member(self, request: Request, number: int) -> Member:
        member = self._engines.by_member.get(number)
        if member is None or member.client != request.client:
            raise Refused("unknown_member", f"member {number}")
        return member

    def _why_not_attach(self, request: Request, ask: wire.Attach) -> str:
        if ask.version != wire.VERSION:
            return _VERSION_ADVICE
        rival = self._engines.rival(ask)
        if rival is not None and rival.attach.incarnation != ask.incarnation:
            if request.is_connected(rival.client):
                return "another process is attached with this engine id"
            self._lose(rival)
        known = self._engines.attached(ask)
        if known is not None and known.attach != ask:
            return "this process has attached as something else"
        engines = self._engines.by_session.values()
        mine = sum(engine.client == request.client for engine in engines)
        if known is None and (len(engines) >= _MAX_ENGINES or mine >= _A_CONNECTION):
            return "too many engines"
        largest = max(map(len, self._core.arena.parts))
        return "" if ask.object_bytes <= largest else f"the L1 holds {largest} bytes in one piece"

    def _why_not_join(self, request: Request, ask: wire.Join) -> str:
        if ask.version != wire.VERSION:
            return _VERSION_ADVICE
        if ask.rank >= ask.ranks:
            return f"rank {ask.rank} of {ask.ranks}"
        if self._engines.joined(ask) is not None:
            return ""
        holder = self._engines.holder(ask)
        stays = holder is not None and not self._engines.is_over(holder)
        if holder is not None and stays and request.is_connected(holder.client):
            return f"another process is rank {ask.rank} of this engine"
        members = self._engines.by_member.values()
        mine = sum(member.client == request.client for member in members)
        if len(members) >= _MAX_MEMBERS or mine >= _A_CONNECTION:
            return "too many worker processes"
        return ""
