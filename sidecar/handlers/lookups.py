"""How much of a prompt is cached: lookup, its result, and the end of what it promised."""

from collections.abc import Sequence

from sidecar.cache.entry import Entry, Space
from sidecar.cache.leases import Lookup
from sidecar.engines.registry import Instance
from sidecar.handlers.core import Core, scope_of, space_of
from sidecar.wire.endpoint import Refused, Request
from sidecar.wire.messages import CacheKey

# After its session has ended a request's last retrieves may still be on their way.
_END_SESSION_GRACE_SECONDS = 10.0
_MAX_SESSIONS = 100_000  # of which is told how many there are, nothing else


class Lookups:
    """lookup, query_prefetch_status, wait_prefetch_status, free_lookup_locks, end_session."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def lookup(self, request: Request, key: CacheKey, tp_size: int = 1) -> None:
        """Find the longest cached prefix and lease it; `query` tells its length later."""
        core = self._core
        core.refuse_when_closing()
        full = core.leases.open >= core.config.max_pending_lookups
        if full and not core.leases.end_oldest_unreported():
            raise Refused("too_many_lookups")
        chunks = key.end // core.config.chunk_size
        hashes = core.hashes(key, chunks * core.config.chunk_size)
        objects, why = self._prefix(key, hashes)
        hits = len(objects[0]) if objects else 0
        # Clients up to 0.5.4 do not say how many workers will read: derive it as they meant.
        readers = key.num_kv_readers or (tp_size if tp_size > key.world_size else 1)
        deadline = core.now() + core.config.l1_read_ttl_seconds
        core.leases.add(
            Lookup(
                request.client,
                key.request_id,
                scope_of(key),
                hashes[:hits],
                objects,
                readers,
                deadline,
            )
        )
        if len(core.sessions) < _MAX_SESSIONS:
            core.sessions[key.request_id] = core.now()
        self._count(key, chunks, hits, why)

    def query(self, request: Request, request_id: str) -> int:
        """The hit in chunks, once; 0 for a lookup that is unknown or was reported before."""
        return self._core.leases.report(request_id, request.client)

    def wait(self, request: Request, request_id: str, timeout: float) -> int:
        """Like `query`: there is no slower tier yet that could be waited for."""
        return self.query(request, request_id)

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

    def _prefix(
        self, key: CacheKey, hashes: Sequence[bytes]
    ) -> tuple[list[list[tuple[Entry, ...]]], str | None]:
        """The objects of the longest prefix, by rank and chunk; why there is none, if so."""
        workers = self._core.registry.layouts(key.model_name, key.world_size)
        if not workers:
            return [], "no_gpu_context"
        if not hashes:
            return [], "empty_chunk_hashes"
        spaces = self._spaces(key, workers)
        if spaces is None:
            return [[] for _ in range(key.world_size)], None
        objects = _common_prefix(spaces, hashes)
        windows = {window for of_rank in workers for w in of_rank for window in w.windows}
        for group, window in windows:
            _shorten_to_window(objects, group, window)
        return objects, None

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

    def _count(self, key: CacheKey, chunks: int, hits: int, why: str | None) -> None:
        telemetry, size = self._core.telemetry, self._core.config.chunk_size
        labels = (key.model_name, key.cache_salt)
        telemetry.lookups_requests.add(1, *labels)
        telemetry.lookup_requested_tokens.add(chunks * size, *labels)
        if why is not None:
            telemetry.lookup_early_exit_requests.add(1, why, *labels)
        if hits:
            telemetry.lookup_hit_tokens.add(hits * size, *labels)
            telemetry.lookup_hit_l1_tokens.add(hits * size, *labels)
            telemetry.lookup_hit_l1_keys.add(hits * key.world_size, *labels)


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


def _shorten_to_window(objects: list[list[tuple[Entry, ...]]], group: int, window: int) -> None:
    """Cut the prefix to where a windowed group has all of its last `window` chunks."""
    length = len(objects[0])
    while length:
        incomplete = [
            chunk
            for chunk in range(max(0, length - window), length)
            if any(group in entry.missing for of_rank in objects for entry in of_rank[chunk])
        ]
        if not incomplete:
            break
        length = incomplete[0]
    for of_rank in objects:
        del of_rank[length:]
