"""The best that any policy can do: one that knows the future (Belady, 1966).

A chunk is kept that is used again soonest, and not at all if it is not used again. The head of a
prompt is used no later than its tail, so what is kept is always a beginning, and no hit is lost.
"""

from collections.abc import Sequence
from heapq import heappop, heappush

from sidecar.replay.trace import Request

_NEVER = 1 << 60
Chunk = tuple[str, bytes]


def hit_chunks(requests: Sequence[Request], chunks: int) -> int:
    """How many chunks are hits, with room for so many."""
    kept: dict[Chunk, int] = {}  # when it is used next
    furthest: list[tuple[int, int, Chunk]] = []  # the deeper of those used together first
    hits = 0
    for request, next_uses in zip(requests, _next_uses(requests), strict=True):
        named = [(request.tenant, chunk_hash) for chunk_hash in request.hashes]
        hits += _known(named, kept)
        for depth, (chunk, at) in enumerate(zip(named, next_uses, strict=True)):
            if at == _NEVER:
                kept.pop(chunk, None)
            else:
                kept[chunk] = at
                heappush(furthest, (-at, -depth, chunk))
        while len(kept) > chunks:
            at, _, chunk = heappop(furthest)
            if kept.get(chunk) == -at:
                del kept[chunk]
    return hits


def _known(named: Sequence[Chunk], kept: dict[Chunk, int]) -> int:
    for number, chunk in enumerate(named):
        if chunk not in kept:
            return number
    return len(named)


def _next_uses(requests: Sequence[Request]) -> list[list[int]]:
    """For each chunk of each request, the number of the request that uses it next."""
    seen: dict[Chunk, int] = {}
    found = []
    for number in range(len(requests) - 1, -1, -1):
        request = requests[number]
        named = [(request.tenant, chunk_hash) for chunk_hash in request.hashes]
        found.append([seen.get(chunk, _NEVER) for chunk in named])
        seen |= dict.fromkeys(named, number)
    return found[::-1]
