"""The JSON of ``--quotas``: how much of each tier a tenant may have."""

import json
import math
from typing import Any, NamedTuple

MOST = 1024  # tenants with a quota
LONGEST_SALT = 128
# How a salt that is empty is called where it cannot be written, as by LMCache.
UNSALTED = "_default"
_FORM = 'such as {"tenant-a": "25%", "tenant-b": {"l1": 8, "l2": "10%"}}'


class Amount(NamedTuple):
    """Bytes, or a share of a tier's capacity."""

    size: int = 0
    share: float | None = None

    def of(self, capacity: int) -> int:
        """In bytes."""
        return self.size if self.share is None else int(self.share * capacity)


class Quota(NamedTuple):
    """What one salt may have of L1, and of each L2 adapter; None: no limit."""

    salt: str
    l1: Amount | None
    l2: Amount | None


def parse(text: str) -> tuple[Quota, ...]:
    """A JSON object, or an array of them as of a repeated flag. Raises ValueError."""
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from None
    found: dict[str, Quota] = {}
    for mapping in given if isinstance(given, list) else [given]:
        if not isinstance(mapping, dict):
            raise ValueError(f"{json.dumps(mapping)} is no object {_FORM}")
        for name, value in mapping.items():
            salt = salt_of(name)
            found[salt] = _quota(salt, value)
    if len(found) > MOST:
        raise ValueError(f"{len(found)} tenants, more than {MOST}")
    return tuple(found.values())


def salt_of(name: str) -> str:
    """The salt that is called so here and on the admin port. Raises ValueError."""
    if not (0 < len(name) <= LONGEST_SALT and name.isprintable()) or set(name) & set("@/\\"):
        raise ValueError(f"a salt has 1 to {LONGEST_SALT} printable characters, none of @ / \\")
    return "" if name == UNSALTED else name


def name_of(salt: str) -> str:
    """The inverse."""
    return salt or UNSALTED


def _quota(salt: str, value: Any) -> Quota:
    if not isinstance(value, dict):
        amount = _amount(value)
        return Quota(salt, amount, amount)
    if not value or value.keys() - {"l1", "l2"}:
        raise ValueError(f"{json.dumps(value)} is not {{l1: ..., l2: ...}}")
    return Quota(salt, *(_amount(value[tier]) if tier in value else None for tier in ("l1", "l2")))


def _amount(value: Any) -> Amount:
    """GiB, or a text such as 25%."""
    text, of_text = str(value), isinstance(value, str) and value.endswith("%")
    try:
        number = float(text[:-1] if of_text else text)
    except ValueError:
        number = math.nan
    limit = 100 if of_text else 65536
    if isinstance(value, bool) or not 0 <= number <= limit:
        raise ValueError(f"{json.dumps(value)} is neither GiB nor a share such as 25%")
    return Amount(share=number / 100) if of_text else Amount(int(number * 2**30))


def written(quotas: tuple[Quota, ...]) -> dict[str, dict[str, float | str]]:
    """As they are written in a file."""
    return {
        name_of(quota.salt): {
            tier: f"{amount.share:.4%}" if amount.share is not None else amount.size / 2**30
            for tier, amount in (("l1", quota.l1), ("l2", quota.l2))
            if amount is not None
        }
        for quota in quotas
    }
