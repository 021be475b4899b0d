"""What every handler works on, and the few steps that several of them share."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

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
from sidecar.handlers.refusals import Refusals
from sidecar.telemetry import Telemetry
from sidecar.telemetry.spans import NO_SPAN, Span
from sidecar.tiers.pipeline import Tiers
from sidecar.wire.endpoint import Refused, Request
from sidecar.wire.messages import NO_TOKENS, BadPayload, CacheKey
from sidecar.wire.tokens import TokenLists


class Session(NamedTuple):
    """A request that is under way: the connection that looked it up, and when."""

    scheduler: bytes
    since: float


@dataclass(slots=True)
class Core:
    """The parts of one cache. All of it belongs to the loop thread."""

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
    sessions: dict[str, Session] = field(default_factory=dict)  # by request id
    closing: bool = False

    def now(self) -> float:
        """The cache's clock, in seconds."""
        return time.monotonic()

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
        return chunk_hashes(tokens.chain, tokens.data, size, end // size)

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

    def refuse_when_closing(self) -> None:
        """Raises Refused once the server is on its way down: nothing new is begun then."""
        if self.closing:
            raise Refused("closing")

    def admit(self, instance: Instance) -> None:
        """Count one more transfer of `instance`. Raises Refused if it has too many queued."""
        if instance.transfers >= self.config.max_queued_requests:
            raise Refused("queue_full", f"{instance.transfers} transfers of {shown(instance.id)}")
        instance.transfers += 1

    @contextmanager
    def pinned(self, entries: Sequence[Entry]) -> Iterator[None]:
        """A copy of these is under way."""
        for entry in entries:
            self.l1.pin(entry)
        try:
            yield
        finally:
            for entry in entries:
                self.l1.unpin(entry)

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
