"""What the KV events of engines say of objects: told by who stored one, for all who can load it."""

from collections import OrderedDict
from collections.abc import Callable

from msgspec import Struct

from sidecar.cache.keys import SpaceKey

_MOST = 1 << 18
_MOST_BYTES = 128 << 20
_SPARED_AT_ONCE = 8


class Name(Struct, frozen=True, gc=False):
    """What an object is called here, out of the sight of the garbage collector."""

    space: SpaceKey
    hash: bytes


class Descriptions:
    """A bounded number of them, of objects that `is_held` rather than of others."""

    def __init__(
        self, is_held: Callable[[Name], bool], most: int = _MOST, most_bytes: int = _MOST_BYTES
    ) -> None:
        self._is_held, self._most, self._most_bytes = is_held, most, most_bytes
        self._by_name: OrderedDict[Name, bytes] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: Name) -> bytes:
        """Empty if nobody has said it."""
        return self._by_name.get(name, b"")

    def put(self, name: Name, description: bytes) -> bool:
        """Remember it; whether that is news."""
        if not description or self._by_name.get(name) == description:
            return False
        self._drop(name)
        self._by_name[name] = description
        self.bytes += len(description)
        self._make_room()
        return True

    def _make_room(self) -> None:
        spared = 0
        while len(self._by_name) > self._most or self.bytes > self._most_bytes:
            oldest = next(iter(self._by_name))
            if spared < _SPARED_AT_ONCE and self._is_held(oldest):
                spared += 1
                self._by_name.move_to_end(oldest)
            else:
                self._drop(oldest)

    def _drop(self, name: Name) -> None:
        self.bytes -= len(self._by_name.pop(name, b""))
