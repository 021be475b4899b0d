"""What a neighbour knows of the server, and of the honest clients beside it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CHUNK = 64
# The honest clients: a model and an instance id for each transfer mode.
HANDLE_MODEL, ENGINE_MODEL = "honest-handle", "honest-engine"
HANDLE_ID, ENGINE_ID = 1_000_001, 1_000_002


@dataclass
class Target:
    """A server, and `seconds` to be its neighbour."""

    port: int
    http_port: int
    l2: str
    seconds: float
    seed: int
    _ends: float = field(init=False)

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + self.seconds
        self.random = random.Random(self.seed)

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def http(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def l2_path(self) -> Path:
        return Path(self.l2)

    def goes_on(self) -> bool:
        return time.monotonic() < self._ends

    def stay(self) -> None:
        """Do nothing more, but be there."""
        while self.goes_on():
            time.sleep(0.05)


Neighbour = Callable[[Target], None]
