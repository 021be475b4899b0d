"""`python -m bench.policies`: what a store into a full L1 costs by eviction policy, however full.

Each store evicts the least valuable object and takes its place; half of the objects have been found
by a lookup before. Of 16 salts where a policy tells them apart. Without a server, in one thread.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import time
from collections.abc import Iterator

from sidecar.cache.arena import ALIGNMENT
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.policies import POLICIES
from sidecar.cache.quotas import Quotas

_COUNTS = (10_000, 100_000, 1_000_000)
_STORES = 20_000
_KEYS = [SpaceKey("model", 1, 0, f"salt {number}", bytes(32)) for number in range(16)]


def microseconds(policy: str, objects: int) -> float:
    """CPU time of one store into an L1 that has room for so many."""
    size = objects * ALIGNMENT
    l1 = L1(size, POLICIES[policy](Quotas(size)))
    l1.grow(0, size)
    hashes = _hashes()
    for number in range(objects):
        key, chunk_hash = _store(l1, next(hashes))
        if number % 2:
            l1.touch(key, [chunk_hash])
    gc.collect()
    begun = time.thread_time()
    for chunk_hash in itertools.islice(hashes, _STORES):
        _store(l1, chunk_hash)
    seconds = time.thread_time() - begun
    assert l1.objects == objects
    assert len(l1.take_evicted()) == _STORES
    return 1e6 * seconds / _STORES


def _hashes() -> Iterator[bytes]:
    # As a hash is: Python's dictionaries would favour numbers in a row.
    return (
        (number * 0x9E3779B97F4A7C15 % 2**64).to_bytes(32, "big") for number in itertools.count()
    )


def _store(l1: L1, chunk_hash: bytes) -> tuple[SpaceKey, bytes]:
    key = _KEYS[chunk_hash[-1] % len(_KEYS)]
    entry = l1.reserve(key, chunk_hash, ALIGNMENT)
    assert entry is not None
    l1.commit(entry)
    return key, chunk_hash


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.policies", description=__doc__)
    parser.add_argument("--most", type=int, default=max(_COUNTS), help="objects (%(default)s)")
    most = parser.parse_args().most
    counts = [count for count in _COUNTS if count <= most]
    print("| microseconds a store |", *(f"{count:,} objects |" for count in counts))
    print("|---|" + "--:|" * len(counts))
    for policy in POLICIES:
        if policy != "noop":  # evicts nothing
            print(
                f"| `{policy}` |", *(f"{microseconds(policy, n):.1f} |" for n in counts), flush=True
            )


if __name__ == "__main__":
    main()
