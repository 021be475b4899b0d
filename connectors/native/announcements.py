"""What routers are told of the sidecar's objects: all that this engine can load, whoever stored it.

A router makes nothing of a KV event without the tokens of its blocks. vLLM knows them for what this
engine stores and finds; so it describes that, and the sidecar hands the descriptions to all engines
that share the objects.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import msgspec
from vllm.distributed.kv_events import BlockRemoved, BlockStored, KVCacheEvent
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash
from vllm.v1.kv_offload.base import Medium, OffloadingEvent

from connectors.native import wire
from connectors.native.lookups import GROUP_BYTES, group_of, hash_of
from connectors.native.present import Present
from connectors.native.session import ANSWER_SECONDS, Session

# In one step.
MOST_DESCRIBED: Final = 256
MOST_ANNOUNCED: Final = 256
# What is stored and found beyond it stays without a description.
MOST_UNDESCRIBED: Final = 1 << 14
READ_SECONDS: Final = 0.1
# How long an engine without requests goes on until routers know what the last one has left.
SETTLE_SECONDS: Final = 2.0
# A sidecar that is away for so long has nothing, as far as routers are concerned.
WITHDRAW_SECONDS: Final = 10.0

_HASH_BYTES = 32  # of an object's name in the sidecar
_MEDIA = ((wire.IN_L1, Medium.CPU.name), (wire.IN_L2, Medium.STORAGE.name))
_encode = msgspec.msgpack.encode
_decoder = msgspec.msgpack.Decoder(BlockStored)


@dataclass(slots=True)
class _Told:
    """What routers know of an object: its blocks, and where it is."""

    blocks: list[Any]
    group: int | None
    media: int
    account: int


class Announcements:
    """The KV events of one engine, in step with what the sidecar says is there.

    Routers count: an object is announced once for each medium, and taken back once. The sidecar
    may begin anew to tell what is there; `account` is the number of that account. `on` is set
    before the first step, by who takes the events. Nothing is told before the first request:
    a router listens to an engine by then. `forget(key)` is called for what this engine has stored
    or found, and what is gone.
    """

    def __init__(
        self, session: Session, clock: Callable[[], float], forget: Callable[[bytes], None]
    ) -> None:
        self.on = False
        self._session, self._clock, self._forget = session, clock, forget
        self._undescribed: dict[bytes, None] = {}
        self._described = Present()
        # What vLLM keeps a description of, by the object's name; and what it is to forget.
        self._tracked: dict[bytes, bytes] = {}
        self._gone: list[bytes] = []
        self._describing: list[bytes] = []
        self._told: dict[bytes, _Told] = {}
        # (name, media, description) of what has changed. None: the account is whole.
        self._news: deque[tuple[bytes, int, bytes] | None] = deque()
        self._account = 0
        self._begin, self._asked, self._more, self._whole = True, False, False, False
        # Something was published of which the sidecar has not told yet.
        self._expects = False
        self._next_read = 0.0
        self._settles_until = float("-inf")
        self._usable_at = clock()

    def stores(self, keys: Sequence[bytes]) -> None:
        """This engine stores `keys`."""
        if self.on and len(self._undescribed) < MOST_UNDESCRIBED:
            self._undescribed.update(dict.fromkeys(keys))

    def found(self, key: bytes) -> None:
        """`key` is a hit, perhaps of an object that nobody has described."""
        if not self.on or self._described.has(key, self._usable_at):
            return
        told = self._told.get(_name(key))
        if told is None or not told.media & wire.IN_L1:
            self.stores([key])

    def published(self) -> None:
        """What was stored is visible from now on."""
        self._expects = True
        self.moves()

    def moves(self) -> None:
        """A request begins or ends."""
        self._settles_until = self._clock() + SETTLE_SECONDS

    def settles(self) -> bool:
        """Whether routers are to learn something yet, so that the engine should not rest."""
        waits = self._expects or self._asked or self._more or self._begin or not self._whole
        return (
            self.on
            and self._session.usable
            and self._clock() < self._settles_until
            and bool(waits or self._news or self._undescribed)
        )

    def questions(self) -> Iterator[OffloadingEvent]:
        """What vLLM is to describe, as if it was just stored; and what it is to forget."""
        self._describing = list(islice(self._undescribed, MOST_DESCRIBED))
        for key in self._describing:
            del self._undescribed[key]
            self._tracked[_name(key)] = key
        gone, self._gone = self._gone, []
        if self._describing:
            yield OffloadingEvent(keys=self._describing, medium=Medium.CPU, removed=False)
        if gone:
            yield OffloadingEvent(keys=gone, medium=Medium.CPU, removed=True)

    def describe(self, answers: Sequence[BlockStored]) -> None:
        """Hand on what vLLM says of each object, in the order asked; it may be a placeholder."""
        items = []
        for key in self._describing:
            self._described.add(key, self._usable_at)
        for key, event in zip(self._describing, answers, strict=False):
            if event.block_hashes[-1:] != [maybe_convert_block_hash(hash_of(key))]:
                continue  # not as this vLLM is known to answer: routers see no more than its GPU
            event.lora_id = None  # a number of this engine; its name is everybody's
            data = _encode(event)
            if event.token_ids and len(data) <= wire.MOST_DESCRIPTION:
                items.append((group_of(key), hash_of(key), data))
        if items:
            payload = wire.Describe(session=self._session.number, items=items)
            self._session.owe(wire.DESCRIBE, payload)

    def read(self, now: float) -> None:
        """Ask the sidecar what has changed, if it is time."""
        if not self.on or self._settles_until < 0.0:
            return
        if not self._session.usable:
            self._withdraw(now)
            return
        self._usable_at = now
        is_due = now >= self._next_read or self._expects or self._more
        if self._asked or self._news or not is_due:
            return
        payload = wire.ReadHoldings(session=self._session.number, begin=self._begin)
        era = self._session.era

        def then(frames: Sequence[bytes]) -> None:
            if era == self._session.era:
                self._said(wire.value(frames, wire.Holdings))

        self._asked = self._session.ask(wire.HOLDINGS, payload, now + ANSWER_SECONDS, then)
        if self._asked:
            self._expects, self._next_read = False, now + READ_SECONDS

    def events(self) -> Iterator[KVCacheEvent]:
        """What routers are to learn in this step."""
        for _ in range(min(len(self._news), MOST_ANNOUNCED)):
            news = self._news.popleft()
            if news is None:
                self._take_back_the_rest()
            else:
                yield from self._announce(*news)

    def reset(self) -> None:
        """vLLM has forgotten its descriptions."""
        self._undescribed.clear()
        self._tracked.clear()
        self._gone.clear()

    def lost(self) -> None:
        """What was said to the sidecar, or by it, may be lost: it has to begin anew."""
        self._described.clear()
        self._begin, self._asked, self._more, self._whole = True, False, False, False
        self._next_read = 0.0

    def _said(self, said: wire.Holdings | None) -> None:
        self._asked = self._more = False
        if said is None or not (said.begun or said.whole or said.more):
            self._begin = True  # a "no": what it could have told may be lost
        if said is None or (self._begin and not said.begun):
            return
        if said.begun:
            self._account, self._begin, self._whole = self._account + 1, False, False
        for group, name, media, description in said.items:
            self._news.append((name + group.to_bytes(GROUP_BYTES, "big"), media, description))
        if said.whole and not self._whole:
            self._whole = True
            self._news.append(None)
        self._more = said.more

    def _announce(self, name: bytes, media: int, description: bytes) -> Iterator[KVCacheEvent]:
        """What routers do not know of the object yet."""
        stored = _read(description) if media else None
        told = self._told.get(name)
        if told is None and stored is not None:
            told = _Told(stored.block_hashes, stored.group_idx, 0, 0)
            self._told[name] = told
        if told is not None:
            told.account = self._account
            yield from _difference(told, media, stored)
            if not told.media:
                del self._told[name]
        if not media and (key := self._tracked.pop(name, None)) is not None:
            self._gone.append(key)
            self._forget(key)

    def _take_back_the_rest(self) -> None:
        """What an account did not have that is whole is not there."""
        rest = [name for name, told in self._told.items() if told.account != self._account]
        self._news.extendleft((name, 0, b"") for name in rest)

    def _withdraw(self, now: float) -> None:
        if now - self._usable_at > WITHDRAW_SECONDS and not self._news:
            self.lost()
            self._news.extend((name, 0, b"") for name in self._told)


def _name(key: bytes) -> bytes:
    """The object of a key: its hash as the sidecar has it, and the group."""
    return hash_of(key).ljust(_HASH_BYTES, b"\0") + key[-GROUP_BYTES:]


def _read(description: bytes) -> BlockStored | None:
    try:
        return _decoder.decode(description)
    except msgspec.DecodeError:
        return None


def _difference(told: _Told, media: int, stored: BlockStored | None) -> Iterator[KVCacheEvent]:
    """The events that lead from what was told to `media`. Without `stored` nothing is gained."""
    for bit, medium in _MEDIA:
        if told.media & bit and not media & bit:
            told.media &= ~bit
            yield BlockRemoved(block_hashes=told.blocks, medium=medium, group_idx=told.group)
        elif media & bit and not told.media & bit and stored is not None:
            told.media |= bit
            yield msgspec.structs.replace(stored, medium=medium)
