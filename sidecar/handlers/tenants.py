"""Tenants and their quotas, for operators."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from sidecar.cache.l1 import L1
from sidecar.cache.quotas import UNLIMITED, Quotas
from sidecar.config.quotas import MOST, Quota, name_of
from sidecar.tiers.backend import Backend

_SHOWN = 100


class Usage(NamedTuple):
    """Of one tenant in one tier, in bytes. Without a quota `limit` is the tier's, None if it has
    none."""

    used: int
    limit: int | None


class Tenants:
    """Quotas of the tiers that keep tenants apart. Loop thread only, but for `usages`."""

    def __init__(
        self,
        l1: L1,
        backends: Iterable[Backend],
        quotas: Iterable[Quota],
        enforce: Callable[[], None],
    ) -> None:
        """`enforce()` evicts what is over a quota of the L1, in turns."""
        self._enforce = enforce
        self._tiers = {"l1": l1.quotas}
        self._isolating = dict(self._tiers) if l1.isolates else {}
        for backend in backends:
            if backend.catalog.tenants is not None:
                self._tiers[backend.label] = backend.catalog.tenants.quotas
                self._isolating[backend.label] = backend.catalog.tenants.quotas
        for quota in quotas:
            self._set(quota)

    def salts(self) -> list[str]:
        """Those with a quota, the oldest first. Any thread."""
        return list(
            dict.fromkeys(salt for q in self._isolating.values() for salt in list(q.limits))
        )

    def rows(self) -> list[dict[str, Any]]:
        """Those with a quota for people, with what they have in each tier; not all of very many."""
        return [
            {
                "name": name_of(salt),
                "tiers": {tier: usage._asdict() for tier, usage in self.usages(salt).items()},
            }
            for salt in self.salts()[:_SHOWN]
        ]

    def measured(self, what: str) -> dict[tuple[str, ...], float]:
        """`used` or `limit` of those with a quota, by name and tier. Any thread."""
        return {
            (name_of(salt), tier): getattr(usage, what) or 0
            for salt in self.salts()[:_SHOWN]
            for tier, usage in self.usages(salt).items()
        }

    def usages(self, salt: str) -> dict[str, Usage]:
        """By tier (l1, or the label of an L2 adapter). Any thread."""
        return {tier: _usage(quotas, salt) for tier, quotas in self._tiers.items()}

    def set(self, quota: Quota) -> None:
        """Raises LookupError where no tier keeps tenants apart, or too many have a quota."""
        if not self._isolating:
            raise LookupError(
                "no tier isolates tenants: --eviction-policy IsolatedLRU or IsolatedARC does"
            )
        known = self.salts()
        if quota.salt not in known and len(known) >= MOST:
            raise LookupError(f"{MOST} tenants have a quota")
        self._set(quota)
        self._enforce()

    def remove(self, salt: str) -> bool:
        """Whether it had a quota."""
        had = [quotas.limits.pop(salt, None) is not None for quotas in self._isolating.values()]
        return any(had)

    def _set(self, quota: Quota) -> None:
        for tier, quotas in self._isolating.items():
            amount = quota.l1 if tier == "l1" else quota.l2
            if amount is None:
                quotas.limits.pop(quota.salt, None)
            else:
                quotas.limits[quota.salt] = amount.of(quotas.capacity)


def _usage(quotas: Quotas, salt: str) -> Usage:
    limit = quotas.limit(salt)
    return Usage(quotas.used(salt), None if limit == UNLIMITED else limit)
