"""The eviction policies, by the names that `--eviction-policy` takes."""

from collections.abc import Callable

from sidecar.cache.policies.arc import ARC
from sidecar.cache.policies.isolated import Isolated
from sidecar.cache.policies.lru import LRU
from sidecar.cache.policies.noop import NoEviction
from sidecar.cache.policy import EvictionPolicy
from sidecar.cache.quotas import Quotas

POLICIES: dict[str, Callable[[Quotas], EvictionPolicy]] = {
    "LRU": lambda quotas: LRU(),
    "ARC": lambda quotas: ARC(),
    "IsolatedLRU": lambda quotas: Isolated(LRU(), quotas),
    "IsolatedARC": lambda quotas: Isolated(ARC(), quotas),
    "noop": lambda quotas: NoEviction(),
}
