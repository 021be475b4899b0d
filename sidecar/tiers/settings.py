"""What the JSON of `--l2-adapter` may say: the keys that all adapters share.

Each adapter's own keys stand beside it. The names are those that LMCache uses where it has
the thing. The descriptions are what docs/configuration.md says of each key.
"""

from collections.abc import Callable
from typing import Annotated, ClassVar, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from sidecar.tiers.base import Adapter

Positive = Annotated[float, Meta(gt=0, le=1e9)]
NotNegative = Annotated[float, Meta(ge=0, le=1e9)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
ThreadCount = Annotated[int, Meta(ge=1, le=256)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]


class GpuMover(NamedTuple):
    """The NIXL backend by which GPUs move files from and to their memory themselves."""

    backend: str
    params: dict[str, str]


class EvictionSettings(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """When the capacity is used up: which share of it may be used, how much goes at once."""

    eviction_policy: Annotated[
        str,
        Meta(
            description="`LRU`; `IsolatedLRU`: that of each tenant by itself, within its quota; "
            "`noop`: store nothing more"
        ),
    ] = "LRU"
    trigger_watermark: Annotated[
        Ratio, Meta(description="share of `max_capacity_gb` that may be used")
    ] = 1.0
    eviction_ratio: Annotated[
        Ratio, Meta(description="share of `max_capacity_gb` that is evicted beyond what is needed")
    ] = 0.0

    def __post_init__(self) -> None:
        if self.eviction_policy not in ("LRU", "IsolatedLRU", "noop"):
            known = "LRU, IsolatedLRU or noop"
            raise ValueError(f"eviction_policy {self.eviction_policy!r} is not {known}")


class AdapterSettings(
    msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True
):
    """Base of every adapter's settings."""

    type: str
    name: Annotated[
        str,
        Meta(
            max_length=64,
            pattern="^[A-Za-z0-9._-]*$",
            description="label in metrics and on the admin port; without it the type",
        ),
    ] = ""
    max_capacity_gb: Annotated[NotNegative, Meta(description="maximum GiB kept; 0 = no limit")] = (
        0.0
    )
    num_workers: Annotated[
        ThreadCount, Meta(description="threads that read at once; half as many write")
    ] = 6
    timeout_seconds: Annotated[
        Positive, Meta(description="a call that takes longer is a failure of the backend")
    ] = 5.0
    eviction: Annotated[
        EvictionSettings, Meta(description="what happens when `max_capacity_gb` is used up")
    ] = EvictionSettings()

    ignored: ClassVar[dict[str, str]] = {
        "persist_enabled": "what is stored is kept",
        "affinity_tag": "there is one L1, and every adapter serves it",
        "per_op_workers": "num_workers says how many threads read, and half as many write",
    }
    """Keys that LMCache knows and that change nothing here, with the reason; a subclass adds."""

    def build(self) -> Adapter:
        """The adapter, not opened yet. Raises AdapterUnusable, without waiting for anything."""
        raise TypeError(f"{type(self).__name__} is no adapter's settings")

    @property
    def gpu_mover(self) -> GpuMover | None:
        """How GPUs move the adapter's files past the L1, None if they do not."""
        return None

    @property
    def capacity_bytes(self) -> int | None:
        """The limit on what is kept, None without one."""
        return int(self.max_capacity_gb * 2**30) or None


REGISTERED: dict[str, type[AdapterSettings]] = {}
T = TypeVar("T", bound=type[AdapterSettings])


def adapter(*types: str) -> Callable[[T], T]:
    """Register settings, and so the adapter that they build, under these types."""

    def register(settings: T) -> T:
        REGISTERED.update(dict.fromkeys(types, settings))
        return settings

    return register
