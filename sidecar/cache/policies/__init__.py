"""The eviction policies, by the names that `--eviction-policy` takes."""

from collections.abc import Callable

from sidecar.cache.policies.arc import ARC
from sidecar.cache.policies.lru import LRU
from sidecar.cache.policies.noop import NoEviction
from sidecar.cache.policy import EvictionPolicy

POLICIES: dict[str, Callable[[], EvictionPolicy]] = {"LRU": LRU, "ARC": ARC, "noop": NoEviction}
