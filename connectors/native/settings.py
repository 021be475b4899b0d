"""What an operator can say about the native door, in `kv_connector_extra_config`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

PREFIX: Final = "kv_sidecar."
URL: Final = "kv_sidecar.url"
BUDGET: Final = "kv_sidecar.budget_ms"
MOST_BUDGET_MS: Final = 10_000
_TRANSPORTS = ("tcp://", "ipc://")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`url` is the sidecar's: `tcp://HOST:PORT` or `ipc:///PATH:PORT`. A request waits for its
    lookup, loads from L2 included, at most `budget_ms`.
    """

    url: str = "tcp://127.0.0.1:5555"
    budget_ms: int = 900

    @classmethod
    def read(cls, extra: Mapping[str, Any]) -> "Settings":
        """From vLLM's extra config. Raises ValueError for what cannot work."""
        unknown = sorted(k for k in extra if k.startswith(PREFIX) and k not in (URL, BUDGET))
        if unknown:
            raise ValueError(f"{unknown[0]} is no setting of kv-sidecar: {URL}, {BUDGET}")
        made = cls(url=extra.get(URL, cls.url), budget_ms=extra.get(BUDGET, cls.budget_ms))
        if not (isinstance(made.url, str) and made.url.startswith(_TRANSPORTS)):
            raise ValueError(f"{URL} is {made.url!r}: tcp://HOST:PORT or ipc:///PATH:PORT")
        if type(made.budget_ms) is not int or not 0 < made.budget_ms <= MOST_BUDGET_MS:
            raise ValueError(f"{BUDGET} is {made.budget_ms!r}: 1 to {MOST_BUDGET_MS}")
        return made
