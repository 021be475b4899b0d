"""A worker process as a member of its engine at the sidecar: it maps the arena and keeps it.

In a thread of its own, so that neither the engine's start nor its steps wait for the sidecar.
"""

import itertools
import logging
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import zmq

from connectors.native import wire
from connectors.native.arena import Arena, Arenas
from connectors.native.connection import Connection
from connectors.native.session import PING_SECONDS, RECONNECT_SECONDS, REFUSED_SECONDS

logger = logging.getLogger("vllm.kv_sidecar")

POLL_MS: Final = 200
Value = TypeVar("Value")


class _Ended(Exception):
    """The connection, or the engine."""


class _Refused(Exception):
    """Not to be tried again at once."""


class Membership:
    """Joins with `join`, maps the arena into `arenas` and says so; again for a new sidecar.

    The sidecar knows this process again after the end of a connection, by its incarnation, and
    names the same segment: it is mapped once.

    `prepare(arena, check)` is called before the sidecar is told, in the thread: it pins the memory,
    say. While it waits it calls `check()`, which raises when that is of no use any more.
    """

    def __init__(
        self,
        join: wire.Join,
        arenas: Arenas,
        connect: Callable[[], Connection],
        prepare: Callable[[Arena, Callable[[], None]], None] = lambda *_: None,
    ) -> None:
        self._join, self._arenas, self._connect, self._prepare = join, arenas, connect, prepare
        self._connection: Connection | None = None
        self._uids = itertools.count(1)
        self._member, self._server, self._shm_name = 0, b"", ""
        self._complaint = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kv-sidecar member", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the mappings stay as long as they are used."""
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._arenas.let_go()
            pause = RECONNECT_SECONDS
            try:
                self._connection = self._connect()
                self._live()
            except _Ended:
                pass
            except (_Refused, zmq.ZMQError, OSError, ValueError, RuntimeError) as error:
                # RuntimeError: what torch says of a device.
                self._complain(str(error))
                pause = REFUSED_SECONDS
            finally:
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
            self._stop.wait(pause)

    def _live(self) -> None:
        """On one connection: be a member, and see to it that the sidecar still knows."""
        while True:
            if not self._member or not self._is_known():
                self._become_member()
            self._rest()

    def _is_known(self) -> bool:
        pong = self._ask(wire.PING, wire.Ping(member=self._member), wire.Pong)
        return pong is not None and pong.known and pong.server == self._server

    def _become_member(self) -> None:
        self._member = 0
        joined = self._ask(wire.JOIN, self._join, wire.Joined)
        if joined is None or joined.member <= 0:
            why = joined.why if joined else "no native protocol"
            raise _Refused(f"the sidecar refuses this worker: {why}")
        if (joined.server, joined.shm_name) != (self._server, self._shm_name):
            self._map(joined)
        mapped = wire.Mapped(member=joined.member, server=joined.server)
        if not self._ask(wire.MAPPED, mapped, bool):
            raise _Refused("the sidecar does not take this worker's mapping")
        self._member = joined.member
        self._complaint = ""

    def _map(self, joined: wire.Joined) -> None:
        """Map the arena of a sidecar, unless this is the one already."""
        try:
            arena = Arena(joined.server, joined.shm_name, joined.arena_bytes)
        except FileNotFoundError:
            raise _Refused(
                f"the sidecar's arena {joined.shm_name} is not in /dev/shm here: both must see the "
                "same one"
            ) from None
        self._prepare(arena, self._check)
        self._arenas.add(arena)
        self._server, self._shm_name = joined.server, joined.shm_name
        logger.info("the sidecar's arena of %d MiB is mapped", joined.arena_bytes >> 20)

    def _ask(self, operation: str, payload: Any, kind: type[Value]) -> Value | None:
        """What the sidecar answers, however long that takes; None for a no."""
        assert self._connection is not None
        uid = next(self._uids)
        if not self._connection.send(wire.request(uid, operation, payload)):
            raise _Ended
        while True:
            frames = self._connection.receive()
            if frames is not None and wire.reply_uid(frames) == uid:
                return wire.value(frames, kind)
            if frames is None:
                self._check()
                self._connection.wait(POLL_MS)

    def _rest(self) -> None:
        for _ in range(int(PING_SECONDS * 1000 / POLL_MS)):
            self._check()
            self._stop.wait(POLL_MS / 1000)

    def _check(self) -> None:
        """Raises _Ended. Called a few times a second."""
        self._arenas.let_go()
        if self._stop.is_set() or (self._connection is not None and self._connection.ended()):
            raise _Ended

    def _complain(self, what: str) -> None:
        if what != self._complaint:
            logger.warning("%s: this engine goes on without the sidecar", what)
        self._complaint = what
