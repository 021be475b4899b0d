"""The native door: vLLM's own offloading connector plans and copies, we keep what it stores."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from sidecar.handlers.core import Core
from sidecar.handlers.eviction import Eviction
from sidecar.handlers.native.engines import Engine, Engines
from sidecar.handlers.native.holdings import Holdings
from sidecar.handlers.native.membership import Membership
from sidecar.handlers.native.objects import Objects


class Native:
    """Its operations, and what the rest of the server has to know of its engines."""

    def __init__(self, core: Core, eviction: Eviction) -> None:
        self._engines = Engines()
        self._membership = Membership(core, self._engines)
        self._objects = Objects(core, self._engines, self._membership, eviction)
        self._holdings = Holdings(core, self._membership)
        core.telemetry.gauge_source("kv_event_readers", self._holdings.count, "native")
        engines = self._engines.by_session
        for name, field in {
            "native_engines": "ready",
            "native_reserved_bytes": "reserved_bytes",
            "native_pinned_bytes": "pinned_bytes",
        }.items():
            core.telemetry.gauge_source(name, partial(_total, engines, field))

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """By operation name."""
        membership, objects, holdings = self._membership, self._objects, self._holdings
        return {
            "native_attach": membership.attach,
            "native_join": membership.join,
            "native_mapped": membership.mapped,
            "native_ping": membership.ping,
            "native_detach": membership.detach,
            "native_reserve": objects.reserve,
            "native_publish": objects.publish,
            "native_return": objects.return_slots,
            "native_lookup": objects.lookup,
            "native_finish": objects.finish,
            "native_resume": objects.resume,
            "native_describe": holdings.describe,
            "native_holdings": holdings.read,
        }

    def tick(self, now: float, is_connected: Callable[[bytes], bool]) -> None:
        """Once a second: end what nobody can touch any more."""
        self._membership.tick(now, is_connected, self._let_go)

    def _let_go(self, engine: Engine) -> None:
        self._objects.let_go(engine)
        self._holdings.let_go(engine)

    def attachments(self) -> set[int]:
        """Whose names of the arena are still needed."""
        return self._membership.attachments()

    def event_readers(self) -> int:
        """How many engines publish KV events of what is here."""
        return self._holdings.count()

    def engines(self) -> list[dict[str, Any]]:
        """What `/status` tells of each engine; sizes in bytes."""
        return [_engine(engine) for engine in self._engines.by_session.values()]


def _total(engines: Mapping[int, Engine], field: str) -> int:
    """Read on another thread than that which changes them."""
    return sum(getattr(engine, field) for engine in list(engines.values()))


def _engine(engine: Engine) -> dict[str, Any]:
    attach = engine.attach
    return {
        "session": engine.session,
        "model_name": attach.model,
        "ranks": attach.ranks,
        "ready": engine.ready,
        "lost": engine.lost,
        "connected": engine.unreachable_since is None,
        "object_bytes": attach.object_bytes,
        "tokens_per_object": attach.chunk_tokens,
        "mapped_ranks": sorted(r for r, m in engine.members.items() if m.mapped),
        "reserved_bytes": engine.reserved_bytes,
        "pinned_bytes": engine.pinned_bytes,
    }
