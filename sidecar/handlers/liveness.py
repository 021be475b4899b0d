"""Who is gone: leases that expired, workers that died, connections that do not come back."""

import logging
from collections.abc import Callable

from sidecar.engines.registry import Instance, shown
from sidecar.handlers.core import Core
from sidecar.handlers.engine_driven import EngineDriven
from sidecar.handlers.eviction import count_evicted
from sidecar.handlers.native import Native
from sidecar.handlers.registration import Registrations
from sidecar.handlers.withheld import Withheld

log = logging.getLogger(__name__)

TICK_SECONDS = 1.0
# Silence after which a peer's connection is looked at: longer than the clients' heartbeat.
_QUIET_SECONDS = 12.0
# How long a peer may stay unreachable: a client reconnects within a second and is heard
# again with its next heartbeat, ten seconds later by default.
_GONE_SECONDS = 30.0
# The same for a worker on a GPU. While we map its memory the GPU cannot give it to its successor,
# which fails at its start then; and one that is given up too early just registers again.
_GPU_QUIET_SECONDS, _GPU_GONE_SECONDS = 2.0, 5.0
_SESSION_SECONDS = 600.0


class Liveness:
    """Runs once a second. `is_connected(client)` tells whether a connection still stands.

    A worker is never reaped while it answers: its connection must be gone, or it must have
    sent heartbeats and stopped for `--worker-reap-timeout-seconds`. An idle worker whose
    client starts its heartbeat lazily is connected and silent, and stays.
    """

    def __init__(
        self,
        core: Core,
        engine_driven: EngineDriven,
        registrations: Registrations,
        withheld: Withheld,
        native: Native,
        is_connected: Callable[[bytes], bool],
    ) -> None:
        self._core = core
        self._engine_driven = engine_driven
        self._registrations = registrations
        self._withheld = withheld
        self._native = native
        self._is_connected = is_connected
        grace = core.config.worker_registration_grace_seconds
        self._gone_seconds = min(_GONE_SECONDS, grace)
        self._unreachable: dict[bytes, float] = {}

    def tick(self) -> None:
        now = self._core.now()
        expired = self._core.leases.expire(now)
        if expired:
            self._core.telemetry.leases_expired.add(expired)
        self._engine_driven.expire(now)
        self._forget_sessions(now)
        for instance in list(self._core.registry.instances.values()):
            reason = self._lost(instance, now)
            if reason is not None:
                self._reap(instance, reason)
        self._drop_lost_clients(now)
        self._withheld.tick(self._is_connected, lambda c: self._core.registry.owned(c) > 0)
        self._native.tick(now, self._is_connected)
        registered = self._core.registry.instances.keys()
        names = registered | self._engine_driven.instances() | self._native.attachments()
        self._core.attachments.prune(names)
        self._core.tiers.tick()
        count_evicted(self._core)
        self._core.gpus.watch()

    def _lost(self, instance: Instance, now: float) -> str | None:
        """Why this worker is given up, None if it is not."""
        silence, timeout = now - instance.last_seen, self._core.config.worker_reap_timeout_seconds
        on_gpu = instance.memory is not None and instance.memory.on_gpu
        quiet = _GPU_QUIET_SECONDS if on_gpu else _QUIET_SECONDS
        if silence < min(quiet, timeout or quiet):
            return None
        if not self._is_connected(instance.client):
            if instance.unreachable_since is None:
                instance.unreachable_since = now
            away = now - instance.unreachable_since
            limit = min(self._gone_seconds, _GPU_GONE_SECONDS) if on_gpu else self._gone_seconds
            return "disconnected" if away >= limit else None
        instance.unreachable_since = None
        return "silent" if timeout and instance.proven and silence > timeout else None

    def _reap(self, instance: Instance, reason: str) -> None:
        log.warning("worker %d is %s: its registration is dropped", shown(instance.id), reason)
        self._registrations.forget(instance)
        self._core.telemetry.reaped_workers.add(1, reason)

    def _drop_lost_clients(self, now: float) -> None:
        """End what is held for connections that are gone: leases, and slots nobody can touch."""
        holders = self._core.leases.clients() | self._engine_driven.clients()
        for client in self._unreachable.keys() - holders:
            del self._unreachable[client]
        gone = set()
        for client in holders:
            if self._is_connected(client):
                self._unreachable.pop(client, None)
            elif now - self._unreachable.setdefault(client, now) >= self._gone_seconds:
                gone.add(client)
        if gone:
            self._core.leases.drop_clients(gone)
            self._engine_driven.end_disconnected(gone)

    def _forget_sessions(self, now: float) -> None:
        sessions = self._core.sessions
        old = [name for name, s in sessions.items() if now - s.since > _SESSION_SECONDS]
        for name in old:
            del sessions[name]
