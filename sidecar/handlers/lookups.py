"""How much of a prompt is cached: lookup, its result, and the end of what it promised."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from sidecar.cache.entry import Entry, Space
from sidecar.cache.leases import Lookup
from sidecar.engines.registry import Instance
from sidecar.flow import Reminder
from sidecar.handlers.core import Core, Session, scope_of, space_of
from sidecar.handlers.withheld import Withheld
from sidecar.telemetry.spans import Span
from sidecar.tiers.prefetch_plan import Prefetch, Want
from sidecar.wire.endpoint import DEFERRED, Refused, Request
from sidecar.wire.messages import CacheKey

# After its session has ended a request's last retrieves may still be on their way.
_END_SESSION_GRACE_SECONDS = 10.0
_MAX_SESSIONS = 100_000  # of which is told how many there are, nothing else
_LONGEST_WAIT_SECONDS = 60.0
_MAX_WAITS = 1024  # of one connection
# What one lookup may find, over all ranks and layouts, and in how many of these: what is beyond is
# a miss. More has no model, but a peer may register as if it had.
_MAX_OBJECTS, _MAX_OBJECTS_A_CHUNK = 2**18, 2**12
Windows = frozenset[tuple[int, int]]


class Lookups:
    """lookup, query_prefetch_status, wait_prefetch_status, free_lookup_locks, end_session."""

    def __init__(
        self,
        core: Core,
        later: Callable[[float, Callable[[], None]], None],
        withheld: Withheld,
    ) -> None:
        """`later(seconds, fn)` is a timer."""
        self._core = core
        self._withheld = withheld
        self._later = later
        self._waits: Counter[bytes] = Counter()  # that are open, of each connection

    def lookup(self, request: Request, key: CacheKey, tp_size: int = 1) -> None:
        """Find the longest cached prefix and lease it; `query` tells its length later."""
        core = self._core
        core.refuse_when_closing()
        chunks = key.end // core.config.chunk_size
        hashes = core.hashes(key, chunks * core.config.chunk_size)
        core.recent.add(key.request_id, scope_of(key), hashes)
        if core.lookup_log is not None:
            core.lookup_log.add(scope_of(key), hashes, key.end)
        # Clients up to 0.5.4 do not say how many workers will read: derive it as they meant.
        readers = key.num_kv_readers or (tp_size if tp_size > key.world_size else 1)
        self.begin(request.client, key, hashes, readers, lambda hits: None)
        if len(core.sessions) < _MAX_SESSIONS:
            core.sessions[key.request_id] = Session(request.client, core.now())

    def begin(
        self, client: bytes, key: CacheKey, hashes: list[bytes], readers: int,
        on_result: Callable[[int], None], into_l1: bool = False,
    ) -> Lookup:  # fmt: skip
        """Lease the longest prefix that the L1 has, and go on in L2 if there is more.

        `on_result(hits)` is called when it is known, in chunks; that may be at once. With
        `into_l1` all of it comes into the L1. Raises Refused where too many are open.
        """
        core = self._core
        span = core.telemetry.begin_span(
            "lookup", key.request_id, model_name=key.model_name, chunks=len(hashes)
        )
        workers, why = self._workers(client, key, hashes)
        width = sum(map(len, workers))
        hashes = hashes[: _MAX_OBJECTS // max(1, width)]
        weight = core.room_for_lookup(client, len(hashes) * (1 + width))
        if weight is None:
            raise Refused("too_many_lookups")
        objects = self._prefix(key, hashes, workers)
        hits = len(objects[0]) if objects else 0
        deadline = core.now() + core.config.l1_read_ttl_seconds
        goes_on = why is None and bool(core.tiers.backends) and hits < len(hashes)
        windows = frozenset(w for of_rank in workers for worker in of_rank for w in worker.windows)
        if not goes_on:
            hits = _windowed(objects, hits, windows)
            for of_rank in objects:
                del of_rank[hits:]
        lookup = Lookup(
            client, key.request_id, scope_of(key), hashes[:hits], objects, readers, deadline,
            loading=goes_on, weight=weight,
        )  # fmt: skip
        core.leases.add(lookup)
        self._count_request(key, hashes, why)
        if goes_on:
            finished = partial(self._finished, key, windows, on_result)
            wants = self._wants(key, workers, into_l1)
            core.tiers.prefetches.begin(lookup, wants, hashes, finished, span)
        else:
            self._count_hits(key, hits, 0, span)
            span.end()
            on_result(hits)
        return lookup

    def query(self, request: Request, request_id: str) -> int | None:
        """The hit in chunks, once; 0 for a lookup that is unknown or was reported before.

        None while objects are being loaded from L2.
        """
        return self._core.leases.report(request_id, request.client)

    def wait(self, request: Request, request_id: str, timeout: float) -> Any:
        """Like `query`, answered when it is known, or after `timeout` seconds."""
        hits = self.query(request, request_id)
        lookup = self._core.leases.find(request_id, request.client)
        if hits is not None or lookup is None:
            return hits
        if self._waits[request.client] >= _MAX_WAITS:
            raise Refused("too_many_waits", f"{_MAX_WAITS} of one connection")
        prefetches, client = self._core.tiers.prefetches, request.client

        def answer() -> None:
            at_latest.forget()
            self._waits[client] -= 1
            if not self._waits[client]:
                del self._waits[client]
            request.reply(self.query(request, request_id))

        def time_is_up() -> None:
            prefetches.forget_waiter(lookup, answer)
            answer()

        at_latest = Reminder(time_is_up)
        self._later(min(timeout, _LONGEST_WAIT_SECONDS), at_latest)
        self._waits[client] += 1
        prefetches.when_loaded(lookup, answer)
        return DEFERRED

    def free(self, request: Request, key: CacheKey, tp_size: int = 1) -> None:
        """The scheduler will not load `[start, end)` after all."""
        size = self._core.config.chunk_size
        chunks = key.end // size
        hashes = self._core.hashes(key, chunks * size)
        readers = key.num_kv_readers or max(tp_size, 1)
        self._core.leases.release(key.request_id, scope_of(key), hashes, key.start // size, readers)

    def end_session(self, request: Request, request_id: str) -> None:
        deadline = self._core.now() + _END_SESSION_GRACE_SECONDS
        self._core.leases.end_session(request_id, deadline)
        self._core.sessions.pop(request_id, None)
        self._core.tokens.forget(request_id)

    def _finished(
        self,
        key: CacheKey,
        windows: Windows,
        on_result: Callable[[int], None],
        prefetch: Prefetch,
        arrived: int,
    ) -> int:
        """L2 has brought what it could: how much of it is a hit."""
        hits = _windowed(prefetch.lookup.objects, arrived, windows)
        self._count_hits(key, hits, sum(prefetch.from_l2[:hits]), prefetch.span)
        on_result(hits)
        return hits

    def _workers(
        self, client: bytes, key: CacheKey, hashes: Sequence[bytes]
    ) -> tuple[list[list[Instance]], str | None]:
        """By rank, who may read this; why the lookup cannot be a hit, if it cannot."""
        workers = self._core.registry.layouts(key.model_name, key.world_size, client)
        if not workers or self._withheld.silences(key.model_name):
            return [], "no_gpu_context"
        if sum(map(len, workers)) > _MAX_OBJECTS_A_CHUNK:
            return [], "too_many_layouts"
        return workers, None if hashes else "empty_chunk_hashes"

    def _wants(
        self, key: CacheKey, workers: list[list[Instance]], into_l1: bool
    ) -> list[list[Want]]:
        """Which objects stand for a chunk: by rank, one for each layout it is served in."""
        past_l1 = None if into_l1 else self._core.past_l1

        def want(rank: int, worker: Instance) -> Want:
            space = space_of(key, rank, worker.fingerprint)
            source = past_l1.source(worker, self._core.registry) if past_l1 is not None else None
            return Want(space, worker.object_bytes, source)

        return [[want(rank, w) for w in of_rank] for rank, of_rank in enumerate(workers)]

    def _prefix(
        self, key: CacheKey, hashes: Sequence[bytes], workers: list[list[Instance]]
    ) -> list[list[tuple[Entry, ...]]]:
        """The objects of the longest prefix in the L1, by rank and chunk."""
        spaces = self._spaces(key, workers)
        if not spaces:
            return [[] for _ in workers]
        return _common_prefix(spaces, hashes)

    def _spaces(self, key: CacheKey, workers: list[list[Instance]]) -> list[list[Space]] | None:
        """Where each rank's objects are, one space a layout; None if a space is empty.

        The lookup does not say which worker will read. A prefix counts only as far as every
        layout in which the model is served has it, so whoever comes finds it.
        """
        spaces = []
        for rank, of_rank in enumerate(workers):
            found = [self._core.l1.space(space_of(key, rank, w.fingerprint)) for w in of_rank]
            present = [space for space in found if space is not None]
            if not present or len(present) < len(of_rank):
                return None
            spaces.append(present)
        return spaces

    def _count_request(self, key: CacheKey, hashes: Sequence[bytes], why: str | None) -> None:
        telemetry, labels = self._core.telemetry, (key.model_name, key.cache_salt)
        telemetry.lookups_requests.add(1, *labels)
        tokens = len(hashes) * self._core.config.chunk_size
        telemetry.lookup_requested_tokens.add(tokens, *labels)
        if why is not None:
            telemetry.lookup_early_exit_requests.add(1, why, *labels)

    def _count_hits(self, key: CacheKey, hits: int, from_l2: int, span: Span) -> None:
        """Chunks of a hit, and how many of them were not in the L1."""
        span.set(hit_chunks=hits, hit_l2_chunks=from_l2)
        labels, tokens = (key.model_name, key.cache_salt), self._core.config.chunk_size
        self._core.count_hits(labels, hits, from_l2, tokens, key.world_size)


def _common_prefix(
    spaces: list[list[Space]], hashes: Sequence[bytes]
) -> list[list[tuple[Entry, ...]]]:
    """By rank, the objects of the chunks that every space has, up to the first gap."""
    if len(spaces) == 1 and len(spaces[0]) == 1:
        ready = spaces[0][0].ready
        prefix: list[tuple[Entry, ...]] = []
        for chunk_hash in hashes:
            entry = ready.get(chunk_hash)
            if entry is None:
                break
            prefix.append((entry,))
        return [prefix]
    objects: list[list[tuple[Entry, ...]]] = [[] for _ in spaces]
    for chunk_hash in hashes:
        found = [[space.ready.get(chunk_hash) for space in of_rank] for of_rank in spaces]
        if any(entry is None for of_rank in found for entry in of_rank):
            break
        for rank, of_rank in enumerate(found):
            objects[rank].append(tuple(entry for entry in of_rank if entry is not None))
    return objects


def _windowed(objects: list[list[tuple[Entry, ...]]], length: int, windows: Windows) -> int:
    """How much of a prefix of `length` chunks is a hit where groups read windows only.

    Each windowed group must have all of the last `window` chunks.
    """
    while True:
        shorter = length
        for group, window in windows:
            shorter = _complete_to(objects, shorter, group, window)
        if shorter == length:  # else another group's window ends elsewhere now
            return length
        length = shorter


def _complete_to(
    objects: list[list[tuple[Entry, ...]]], length: int, group: int, window: int
) -> int:
    while length:
        incomplete = [
            chunk
            for chunk in range(max(0, length - window), length)
            if any(group in entry.missing for of_rank in objects for entry in of_rank[chunk])
        ]
        if not incomplete:
            break
        length = incomplete[0]
    return length
