"""Prefetches that an operator or a router asks for: from L2 into the L1, ahead of need."""

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from sidecar.cache.keys import chunk_hashes
from sidecar.cache.leases import Lookup
from sidecar.handlers.core import Core
from sidecar.handlers.lookups import Lookups
from sidecar.wire.endpoint import Refused
from sidecar.wire.messages import NO_TOKENS, CacheKey

_MAX_JOBS = 1024  # remembered; the oldest is forgotten first
# As a client they have no connection, so nobody can ask on their behalf.
_CLIENT = b""


@dataclass(slots=True)
class Job:
    """`found_keys` of `total_keys` objects are in the L1; None while that is not known."""

    total_keys: int
    found_keys: int | None = None


class PrefetchJobs:
    """Loop thread only. A job's result is told once."""

    def __init__(self, core: Core, lookups: Lookups) -> None:
        self._core = core
        self._lookups = lookups
        self._jobs: OrderedDict[str, Job] = OrderedDict()

    def hashes(self, token_ids: Sequence[int]) -> list[bytes]:
        """The hashes of a sequence's whole chunks. Any thread but the loop's: it takes a while.

        Raises ValueError for more tokens than a request on the wire may have.
        """
        config = self._core.config
        if len(token_ids) > config.max_tokens:
            raise ValueError(f"{len(token_ids)} tokens, more than {config.max_tokens}")
        size, tokens = config.chunk_size, np.array(token_ids, ">u4").tobytes()
        return chunk_hashes([], tokens, size, len(token_ids) // size)

    def submit(self, model_name: str, world_size: int, hashes: list[bytes], cache_salt: str) -> str:
        """Begin to bring these chunks of a sequence into the L1; the job's id.

        Without a chunk there is no job. Raises LookupError for a model that no worker serves now
        (its objects' layout is unknown) and while too many jobs are under way, BadPayload (a
        ValueError) for names and numbers that cannot be.
        """
        core, tokens = self._core, len(hashes) * self._core.config.chunk_size
        request_id = f"prefetch-{secrets.token_hex(8)}"
        key = CacheKey(model_name, world_size, None, NO_TOKENS, 0, tokens, request_id, cache_salt)
        if not core.registry.layouts(model_name, world_size, _CLIENT):
            raise LookupError(f"no worker serves {model_name!r} with world size {world_size}")
        if not hashes:
            return request_id
        job = Job(len(hashes) * world_size)
        on_result = partial(self._found, job, key)
        try:
            lookup = self._lookups.begin(_CLIENT, key, hashes, 1, on_result, into_l1=True)
        except Refused:
            raise LookupError("too many prefetches are under way") from None
        self._jobs[request_id] = job
        while len(self._jobs) > _MAX_JOBS:
            self._jobs.popitem(last=False)
        core.tiers.prefetches.when_loaded(lookup, partial(self._ended, job, lookup))
        return request_id

    def take(self, request_id: str) -> Job:
        """The job; one that has ended is forgotten. Raises KeyError if it is unknown."""
        job = self._jobs[request_id]
        if job.found_keys is not None:
            del self._jobs[request_id]
        return job

    def _ended(self, job: Job, lookup: Lookup) -> None:
        """Nobody comes for it: what was loaded is an ordinary object of the L1 from now on."""
        if job.found_keys is None:
            job.found_keys = 0  # it had to give way to other lookups
        self._core.leases.end(lookup)

    def _found(self, job: Job, key: CacheKey, hits: int) -> None:
        job.found_keys = hits * key.world_size
