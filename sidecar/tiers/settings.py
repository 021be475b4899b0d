"""What the JSON of `--l2-adapter` may say: the keys that all adapters share.

Each adapter's own keys stand beside it. The names are those that LMCache uses where it has
the thing.
"""

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from sidecar.tiers.base import Adapter

Positive = Annotated[float, Meta(gt=0, le=1e9)]
NotNegative = Annotated[float, Meta(ge=0, le=1e9)]
Ratio = Annotated[float, Meta(ge=0, le=1)]
Workers = Annotated[int, Meta(ge=1, le=256)]
Name = Annotated[str, Meta(min_length=1, max_length=512)]


class Eviction(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """When the capacity is used up: which share of it may be used, how much goes at once."""

    eviction_policy: str = "LRU"
    trigger_watermark: Ratio = 1.0
    eviction_ratio: Ratio = 0.0

    def __post_init__(self) -> None:
        if self.eviction_policy not in ("LRU", "noop"):
            raise ValueError(f"eviction_policy {self.eviction_policy!r} is not LRU or noop")


class AdapterSettings(
    msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True, kw_only=True
):
    """Base of every adapter's settings.

    `name` is the adapter's label in metrics and on the admin port; `max_capacity_gb` (GiB)
    0 = no limit; `num_workers` threads read at once, half as many write; a call that takes
    longer than `timeout_seconds` counts as a failure of the backend.
    """

    type: str
    name: Annotated[str, Meta(max_length=64, pattern="^[A-Za-z0-9._-]*$")] = ""
    max_capacity_gb: NotNegative = 0.0
    num_workers: Workers = 6
    timeout_seconds: Positive = 5.0
    eviction: Eviction = Eviction()

    ignored: ClassVar[dict[str, str]] = {
        "persist_enabled": "what is stored stays",
        "affinity_tag": "there is one L1, and every adapter serves it",
        "per_op_workers": "num_workers says how many threads read, and half as many write",
    }
    """Keys that LMCache knows and that change nothing here, with the reason; a subclass adds."""

    def build(self) -> Adapter:
        """The adapter, not opened yet. Raises AdapterUnusable, without waiting for anything."""
        raise TypeError(f"{type(self).__name__} is no adapter's settings")

    @property
    def capacity_bytes(self) -> int | None:
        """The limit on what is kept, None without one."""
        return int(self.max_capacity_gb * 2**30) or None
