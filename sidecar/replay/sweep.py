"""Hit rates of policies over sizes and chunk sizes."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import NamedTuple

from sidecar.replay import belady, simulation
from sidecar.replay.simulation import Eviction
from sidecar.replay.trace import Line, in_chunks

BEST = "best possible"
_SMALLEST_SHARE, _STEPS = 64, 7  # 1/64 of what the trace has, and twice as much each time


class Curve(NamedTuple):
    """Percent of all tokens that are hits, for each size, of one policy."""

    policy: str
    chunk_size: int
    hits: list[float]


def default_sizes(lines: Sequence[Line]) -> list[int]:
    """From a few percent of what the trace has to all of it, in tokens."""
    tokens = distinct_tokens(lines, lines[0].tokens_per_id)
    return [max(1, tokens * 2**step // _SMALLEST_SHARE) for step in range(_STEPS)]


def distinct_tokens(lines: Sequence[Line], chunk_size: int) -> int:
    """What a cache that keeps everything would hold in the end."""
    requests = in_chunks(lines, chunk_size)
    return chunk_size * len({(r.tenant, chunk) for r in requests for chunk in r.hashes})


def curves(
    lines: Sequence[Line],
    policies: Sequence[str],
    chunk_sizes: Sequence[int],
    sizes: Sequence[int],
    eviction: Eviction,
) -> list[Curve]:
    """One for each policy and chunk size; `sizes` are in tokens. Uses all CPUs there are."""
    pairs = [(policy, chunk_size) for chunk_size in chunk_sizes for policy in policies]
    jobs = [(*pair, size) for pair in pairs for size in sizes]
    with ProcessPoolExecutor() as pool:
        hits = list(pool.map(partial(_percent, lines, eviction), *zip(*jobs, strict=True)))
    width = len(sizes)
    return [
        Curve(policy, chunk_size, hits[at * width : (at + 1) * width])
        for at, (policy, chunk_size) in enumerate(pairs)
    ]


def _percent(
    lines: Sequence[Line], eviction: Eviction, policy: str, chunk_size: int, size: int
) -> float:
    requests, chunks = in_chunks(lines, chunk_size), max(1, size // chunk_size)
    if policy == BEST:
        hits = belady.hit_chunks(requests, chunks)
    else:
        hits = simulation.hit_chunks(requests, policy, chunks, eviction)
    tokens = sum(request.tokens for request in requests)
    return 100 * hits * chunk_size / max(1, tokens)
