"""Chunks that the sidecar is known to have, so that they are not copied again at once."""

from collections import OrderedDict
from typing import Final

# An eviction in the sidecar is told only to engines that publish KV events, so what is known is not
# believed for ever.
BELIEVED_SECONDS: Final = 60.0
MOST_KEYS: Final = 1 << 16


class Present:
    """Keys that were published lately.

    vLLM offers the chunks of a prompt that its own prefix cache had again with each request.
    Storing them once a minute keeps them from being evicted in the sidecar, too.
    """

    def __init__(self) -> None:
        self._until: OrderedDict[bytes, float] = OrderedDict()

    def add(self, key: bytes, now: float) -> None:
        self._until[key] = now + BELIEVED_SECONDS
        self._until.move_to_end(key)
        if len(self._until) > MOST_KEYS:
            self._until.popitem(last=False)

    def has(self, key: bytes, now: float) -> bool:
        return self._until.get(key, 0.0) > now

    def discard(self, key: bytes) -> None:
        self._until.pop(key, None)

    def clear(self) -> None:
        self._until.clear()
