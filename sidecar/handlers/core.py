"""What every handler works on, and the few steps that several of them share."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from sidecar.cache.arena import Arena
from sidecar.cache.entry import Entry
from sidecar.cache.keys import BYTES_PER_TOKEN, SpaceKey, chunk_hashes
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases, Scope
from sidecar.config import Config
from sidecar.engines.attachments import Attachments
from sidecar.engines.copier import CopyPool
from sidecar.engines.cuda.gpus import Gpus
from sidecar.engines.registry import Instance, NotOwner, Registry, shown
from sidecar.flow import Flows
from sidecar.handlers.kv_events.chunks import Chunks
from sidecar.handlers.lookup_log import LookupLog
from sidecar.handlers.protecting import RecentLookups
from sidecar.handlers.refusals import Refusals
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import NO_SPAN, Span
from sidecar.tiers.bypass import Source
from sidecar.tiers.tiers import Tiers
from sidecar.wire.endpoint import Refused, Request
from sidecar.wire.messages import NO_TOKENS, BadPayload, CacheKey
from sidecar.wire.tokens import TokenLists

if TYPE_CHECKING:
    from sidecar.handlers.eviction import Eviction
    from sidecar.handlers.stores import Stores


# Hashes and objects of all open lookups, each some 70 bytes.
_MAX_HELD = 2**22


class Session(NamedTuple):
    """A request that is under way: the connection that looked it up, and when."""

    scheduler: bytes
    since: float


class PastL1(Protocol):
    """What moves objects between workers and files, past the L1 (`gds`)."""

    def source(self, worker: Instance, registry: Registry) -> Source | None:
        """Where a lookup finds objects of this layout, if all workers that have it read them."""

    def moves_files(self, worker: Instance) -> bool:
        """Whether the worker's transfers take objects that are in files, as of now."""

    def store_handler(
        self, core: "Core", eviction: "Eviction", lost: Callable[[Instance], None]
    ) -> "Stores":
        """The handler of stores."""


@dataclass(slots=True)
class Core:
    """The parts of one cache. All of it belongs to the loop thread.

    `past_l1` is None where everything goes through the L1.
    """

    config: Config
    arena: Arena
    attachments: Attachments
    l1: L1
    leases: Leases
    registry: Registry
    copies: CopyPool
    gpus: Gpus
    telemetry: Telemetry
    tokens: TokenLists
    refusals: Refusals
    tiers: Tiers
    flows: Flows
    chunks: Chunks
    past_l1: PastL1 | None = None
    lookup_log: LookupLog | None = None
    recent: RecentLookups = field(default_factory=RecentLookups)
    sessions: dict[str, Session] = field(default_factory=dict)  # by request id
    closing: bool = False
    # Of slots that an earlier server's clients may touch.
    others_bytes: Callable[[], int] = lambda: 0

    def now(self) -> float:
        """The cache's clock, in seconds."""
        return time.monotonic()

    def arena_name(self, instance_id: int) -> str:
        """The name by which a registration of this worker is to open the arena."""
        name = self.attachments.name(instance_id)
        if name == self.arena.segment.name:
            self.l1.journal.shared()
        return name

    def trace(self, request: Request, key: CacheKey) -> Span:
        """The span of a request; it ends with the answer."""
        span = self.telemetry.begin_span(
            request.operation.name, key.request_id, model_name=key.model_name,
            worker_id=key.worker_id or 0, start=key.start, end=key.end,
        )  # fmt: skip
        if span is not NO_SPAN:
            request.on_end = span.end
        return span

    def publish(
        self, entries: list[Entry], space: SpaceKey, hashes: list[bytes], span: Span
    ) -> None:
        """All bytes of these are in place; they are of the sequence `hashes`, in its order.

        `span` is of the request that brought them.
        """
        self.l1.publish(space, entries, hashes)
        self.telemetry.l1_write_chunks.add(len(entries))
        self.tiers.stored(entries, span)
        self.tiers.used(space, hashes)

    def touch(self, space: SpaceKey, hashes: Sequence[bytes]) -> None:
        """A worker has used the sequence `hashes` of what is in the L1."""
        self.l1.touch(space, hashes)
        self.tiers.used(space, hashes)

    def hashes(self, key: CacheKey, end: int) -> list[bytes]:
        """The chunk hashes of the sequence up to token `end`, a multiple of the chunk size.

        The key gives its tokens up: they are a part of the message, and hold all of it in memory
        for as long as the request is under way. Raises BadPayload if the sequence is shorter.
        """
        tokens = self.tokens.decode(key.request_id, key.token_ids)
        key.token_ids = NO_TOKENS
        if end * BYTES_PER_TOKEN > len(tokens.data):
            count = len(tokens.data) // BYTES_PER_TOKEN
            raise BadPayload(f"end {end} is behind the {count} tokens")
        size = self.config.chunk_size
        hashes = chunk_hashes(tokens.chain, tokens.data, size, end // size)
        if self.chunks.on:
            self.chunks.note(scope_of(key), hashes, tokens.data)
        return hashes

    def aligned_range(self, key: CacheKey) -> range:
        """The chunks that `key` means. Raises BadPayload if it does not mean whole ones."""
        size = self.config.chunk_size
        if key.start % size or key.end % size:
            raise BadPayload(f"[{key.start}, {key.end}) is not aligned to {size} tokens")
        return range(key.start // size, key.end // size)

    def instance(self, request: Request, instance_id: int, key: CacheKey, kind: str) -> Instance:
        """The worker that asks, heard from now. Raises Refused if it cannot ask this."""
        self.refuse_when_closing()
        instance = self.speaker(request, instance_id)
        if instance is None or instance.kind != kind:
            raise Refused("unknown_instance", f"worker {shown(instance_id)}")
        if key.worker_id is None:
            raise BadPayload("worker_id is missing")
        if (instance.model_name, instance.world_size) != (key.model_name, key.world_size):
            raise Refused("wrong_model", f"it serves {instance.model_name}")
        instance.rank = key.worker_id
        if request.done_event is None and instance.memory is not None:
            request.done_event = instance.memory.done_event
        if (session := self.sessions.get(key.request_id)) is not None:
            self.registry.serves(instance, session.scheduler)
        return instance

    def speaker(self, request: Request, instance_id: int) -> Instance | None:
        """The worker for which `request` speaks, heard from now; None if it is not registered.

        Raises Refused if another connection speaks for it.
        """
        try:
            return self.registry.speaker(
                instance_id, request.client, self.now(), request.is_connected
            )
        except NotOwner as error:
            raise Refused("not_owner", str(error)) from None

    def count_hits(
        self, labels: tuple[str, str], hits: int, from_l2: int, tokens: int, keys: int = 1
    ) -> None:
        """Chunks of a hit, of so many tokens and keys each; `from_l2` were not in the L1."""
        telemetry, from_l1 = self.telemetry, hits - from_l2
        if hits:
            telemetry.lookup_hit_tokens.add(hits * tokens, *labels)
            telemetry.lookup_hit_l1_tokens.add(from_l1 * tokens, *labels)
            telemetry.lookup_hit_l1_keys.add(from_l1 * keys, *labels)
            telemetry.lookup_hit_l2_tokens.add(from_l2 * tokens, *labels)
            telemetry.lookup_hit_l2_keys.add(from_l2 * keys, *labels)

    def room_for_lookup(self, client: bytes, held: int) -> int | None:
        """What a lookup that may hold so many hashes and objects weighs; None: too many are open.

        Those that nobody has asked about give way to it.
        """
        weight = max(held, _MAX_HELD // self.config.max_pending_lookups)
        return weight if self.leases.make_room(client, weight, _MAX_HELD) else None

    def refuse_when_closing(self) -> None:
        """Raises Refused once the server is on its way down: nothing new is begun then."""
        if self.closing:
            raise Refused("closing")

    def admit(self, instance: Instance) -> None:
        """Count one more transfer of `instance`. Raises Refused if it has too many queued."""
        if instance.transfers >= self.config.max_queued_requests:
            raise Refused("queue_full", f"{instance.transfers} transfers of {shown(instance.id)}")
        instance.transfers += 1

    def readable(
        self, instance: Instance, key: CacheKey, hashes: Sequence[bytes], chunks: range
    ) -> list[Entry | None]:
        """By chunk, what a worker may read: what its request was promised, or else the L1 has."""
        place = space_of(key, key.worker_id or 0, instance.fingerprint)
        found = self.leases.promised(key.request_id, scope_of(key), hashes, chunks, place)
        if self.past_l1 is not None and not self.past_l1.moves_files(instance):
            found = [e if e is not None and self.is_in_l1(e) else None for e in found]
        space = self.l1.space(place)
        ready = space.ready if space is not None else {}
        return [
            entry if entry is not None else ready.get(hashes[chunk])
            for chunk, entry in zip(chunks, found, strict=True)
        ]

    def is_in_l1(self, entry: Entry) -> bool:
        """Whether it has a slot, as an ordinary object has."""
        return entry.space.holds is self.l1

    @contextmanager
    def pinned(self, entries: Sequence[Entry]) -> Iterator[None]:
        """A copy of these is under way."""
        for entry in entries:
            entry.space.holds.pin(entry)
        try:
            yield
        finally:
            for entry in entries:
                entry.space.holds.unpin(entry)

    @contextmanager
    def transfer(self, instance: Instance) -> Iterator[None]:
        """A transfer of `instance`, from its admission to its end. Raises Refused as `admit`."""
        self.admit(instance)
        try:
            yield
        finally:
            instance.transfers -= 1


def scope_of(key: CacheKey) -> Scope:
    return Scope(key.model_name, key.world_size, key.cache_salt)


def space_of(key: CacheKey, rank: int, fingerprint: bytes) -> SpaceKey:
    return SpaceKey(key.model_name, key.world_size, rank, key.cache_salt, fingerprint)
