"""A trace against the L1 itself: the same index, policies and eviction as in the server."""

from collections.abc import Sequence
from typing import NamedTuple

from sidecar.cache.arena import ALIGNMENT
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.policies import POLICIES
from sidecar.cache.quotas import Quotas
from sidecar.replay.trace import Request


class Eviction(NamedTuple):
    """As the options of the same names: shares of the capacity."""

    trigger_watermark: float
    ratio: float


def hit_chunks(requests: Sequence[Request], policy: str, chunks: int, eviction: Eviction) -> int:
    """How many chunks are hits in an L1 with room for `chunks` of them."""
    size = chunks * ALIGNMENT
    l1 = L1(size, POLICIES[policy](Quotas(size)))
    l1.grow(0, size)
    hits = 0
    for request in requests:
        hits += _serve(l1, request)
        if l1.used_bytes > eviction.trigger_watermark * size:
            l1.evict(chunks, l1.used_bytes - int(eviction.ratio * size))
        l1.take_evicted()
    return hits


def _serve(l1: L1, request: Request) -> int:
    """What an engine does with a prompt: look up, load what is cached, store the rest."""
    key = SpaceKey("", 1, 0, request.tenant, b"")
    space = l1.space(key)
    found = space.prefix(request.hashes) if space is not None else []
    for entry in found:
        l1.lease(entry)
    l1.touch(key, request.hashes[: len(found)])
    rest = request.hashes[len(found) :]
    reserved = [l1.reserve(key, each, ALIGNMENT) for each in rest if not l1.knows(key, each)]
    if rest:
        l1.publish(key, [each for each in reserved if each is not None], request.hashes)
    for entry in found:
        l1.unlease(entry)
    return len(found)
