"""The native door: how long a scheduler's lookup takes, over the connector's own connection."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import zmq

from bench.cases import LOOKUPS
from bench.client import CHUNK_TOKENS
from bench.common import LIMIT, BenchError
from bench.figures import Samples
from connectors.native import wire
from connectors.native.arena import Arenas
from connectors.native.connection import Dealer
from connectors.native.membership import Membership
from connectors.native.session import Session

# The smallest objects there are: only their number counts here.
OBJECT_BYTES = wire.SLOT_BYTES
_AT_ONCE = 256  # objects published in one message
_POLL_SECONDS = 0.01


class _Owner:
    """A session tells it what it has lost; here that is a failure, and shows as one."""

    def held(self) -> tuple[list[int], list[str]]:
        return [], []

    def voided(self) -> None:
        pass

    def disconnected(self) -> None:
        pass


def lookups(url: str, repeats: int) -> Samples:
    """Prompts that are new, and such as hit but for their last chunk, as `cases.lookup`'s."""
    with _engine(url) as session:
        samples: Samples = {}
        for name, tokens in LOOKUPS.items():
            chunks = tokens // CHUNK_TOKENS
            known = _hashes(chunks - 1)
            _publish(session, known)
            for _ in range(4 * repeats):
                _measure(samples, f"native_new_{name}", session, _hashes(chunks), 0)
                hashes = [*known, *_hashes(1)]
                _measure(samples, f"native_{name}", session, hashes, len(known))
        return samples


def _measure(samples: Samples, key: str, session: Session, hashes: list[bytes], hits: int) -> None:
    """Milliseconds until the scheduler knows, added to `samples`."""
    request = secrets.token_hex(8)
    groups = [wire.Wanted(group=0, windowed=False, load=False, hashes=hashes)]
    payload = wire.Lookup(session=session.number, request=request, budget_ms=0, groups=groups)
    start = time.perf_counter()
    [slots] = _ask(session, wire.LOOKUP, payload, list[list[int]]) or [[]]
    samples.setdefault(key, []).append(1e3 * (time.perf_counter() - start))
    found = sum(slot >= 0 for slot in slots)
    if found != hits:
        raise BenchError(f"a native lookup found {found} objects of {hits}")
    finish = wire.Finish(session=session.number, requests=[(request, True)])
    _ask(session, wire.FINISH, finish, bool)


def _publish(session: Session, hashes: list[bytes]) -> None:
    for first in range(0, len(hashes), _AT_ONCE):
        part = hashes[first : first + _AT_ONCE]
        reserve = wire.Reserve(session=session.number, count=len(part))
        slots = _ask(session, wire.RESERVE, reserve, list[int]) or []
        items = [(0, each, slot) for each, slot in zip(part, slots, strict=False)]
        publish = wire.Publish(session=session.number, request="stored", items=items)
        if _ask(session, wire.PUBLISH, publish, int) != len(part):
            raise BenchError("objects were not published")


def _ask(session: Session, operation: str, payload: Any, kind: type[Any]) -> Any:
    answers: list[Any] = []
    due = time.monotonic() + LIMIT
    sent = session.ask(operation, payload, due, lambda f: answers.append(wire.value(f, kind)))
    _until(session, lambda: not sent or bool(answers))
    if not sent:
        raise BenchError(f"{operation} could not be sent")
    return answers[0]


def _until(session: Session, condition: Callable[[], bool], pause: float = 0.0) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        session.poll()
        if time.monotonic() > end:
            raise BenchError("the native door does not answer")
        time.sleep(pause)


@contextmanager
def _engine(url: str) -> Iterator[Session]:
    """An engine of one rank that is served."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    engine, incarnation = secrets.token_hex(16), os.urandom(16)
    common: dict[str, Any] = {"engine": engine, "incarnation": incarnation, "ranks": 1}
    join = wire.Join(**common, rank=0, object_bytes=OBJECT_BYTES, layout=bytes(32))
    attach = wire.Attach(
        **common, model="bench", groups=1, object_bytes=OBJECT_BYTES, chunk_tokens=CHUNK_TOKENS,
        identity=os.urandom(32),
    )  # fmt: skip
    member = Membership(join, Arenas(), lambda: Dealer(context, url))
    session = Session(lambda: attach, lambda: Dealer(context, url), _Owner(), time.monotonic)
    member.start()
    try:
        _until(session, lambda: session.usable, _POLL_SECONDS)
        yield session
    finally:
        session.close()
        member.stop()
        context.term()


def _hashes(count: int) -> list[bytes]:
    """Of new chunks."""
    return [os.urandom(32) for _ in range(count)]
