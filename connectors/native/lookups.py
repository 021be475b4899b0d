"""What a request knows of its keys: asked once, remembered until it has loaded or runs without.

A key is vLLM's: the hash of a chunk and, in its last four bytes, the group.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from vllm.v1.kv_offload.base import LookupResult

from connectors.native.wire import BELOW, MISS, MOST_HASHES, Wanted

GROUP_BYTES: Final = 4


def group_of(key: bytes) -> int:
    return int.from_bytes(key[-GROUP_BYTES:], "big")


def hash_of(key: bytes) -> bytes:
    return key[:-GROUP_BYTES]


@dataclass(slots=True)
class _Asked:
    """A lookup under way: its groups, and the keys of each in the order asked."""

    groups: list[Wanted]
    keys: list[list[bytes]]


@dataclass(slots=True)
class Lookups:
    """The keys of one request, from its first lookup to the end of its load.

    `name` is what the sidecar knows the pins by: a request that is preempted and looked up again
    has another. `until` bounds how long vLLM is told to ask again. `sent`: there may be pins.
    """

    name: str
    era: int
    until: float
    sent: bool = False
    loading: bool = False
    used: bool = False
    # Keys that the sidecar had in L2 when they were first asked for.
    from_below: set[bytes] = field(default_factory=set)
    _found: dict[bytes, int] = field(default_factory=dict)
    # What the passes since the last message ask for: key -> where its chunk ends, in tokens.
    _unknown: dict[bytes, int] = field(default_factory=dict)
    _to_load: dict[bytes, None] = field(default_factory=dict)
    _asked: _Asked | None = None

    def result(self, key: bytes, end: int, now: float) -> LookupResult:
        """What vLLM is told of `key`, whose chunk ends at token `end`."""
        slot = self._found.get(key)
        if slot is None:
            if now >= self.until:
                return LookupResult.MISS
            self._unknown.setdefault(key, end)
            return LookupResult.RETRY
        if slot >= 0:
            return LookupResult.HIT
        if slot == MISS or now >= self.until:
            return LookupResult.MISS
        self._to_load[key] = None
        return LookupResult.HIT_PENDING

    def slots(self, keys: Sequence[bytes]) -> list[int]:
        """Where `keys` are, all of which were hits. Raises KeyError for another."""
        found = [self._found[key] for key in keys]
        if min(found, default=0) < 0:
            raise KeyError("a key that was no hit")
        return found

    def question(self) -> list[Wanted]:
        """What to ask the sidecar now; empty if nothing, or an answer is still to come."""
        unknown, to_load = self._unknown, self._to_load
        self._unknown, self._to_load = {}, {}
        # What is gathered meanwhile is gathered again by the pass after the answer.
        if self._asked is not None or not (unknown or to_load):
            return []
        self._asked = asked = _Asked([], [])
        for group, keys in _by_group(unknown).items():
            ends = [unknown[key] for key in keys]
            _add(asked, group, keys, windowed=not _ascending(ends), load=False)
        for group, keys in _by_group(to_load).items():
            _add(asked, group, keys, windowed=True, load=True)
        return asked.groups

    def unsent(self) -> None:
        """The question did not go out: the keys are asked for anew in the next pass."""
        self._asked = None

    def answer(self, said: list[list[int]], last: int) -> bool:
        """Take an answer to the question, of slots up to `last`. False: it is no answer to it."""
        asked = self._asked
        if asked is None or len(said) != len(asked.groups):
            return False
        for keys, slots in zip(asked.keys, said, strict=True):
            if len(slots) != len(keys):
                return False
            if slots and not (min(slots) >= BELOW and max(slots) <= last):
                return False
        self._asked = None
        self._unknown.clear()
        for wanted, keys, slots in zip(asked.groups, asked.keys, said, strict=True):
            if wanted.windowed and not wanted.load:
                self.from_below.update(k for k, s in zip(keys, slots, strict=True) if s == BELOW)
                self._found.update(zip(keys, slots, strict=True))
            else:
                # What was to be loaded, and has not been, is a miss.
                self._found.update((k, max(s, MISS)) for k, s in zip(keys, slots, strict=True))
        return True


def has_pins(said: list[list[int]] | None) -> bool:
    """Whether an answer to a lookup pins anything."""
    return said is not None and any(slot >= 0 for slots in said for slot in slots)


def _ascending(ends: list[int]) -> bool:
    """vLLM asks for a prefix in its order, and for all else from the end."""
    return ends == sorted(set(ends))


def _by_group(keys: dict[bytes, int] | dict[bytes, None]) -> dict[int, list[bytes]]:
    groups: defaultdict[bytes, list[bytes]] = defaultdict(list)
    for key in keys:
        groups[key[-GROUP_BYTES:]].append(key)
    # What is left out is asked for by a later pass.
    return {group_of(suffix): found[:MOST_HASHES] for suffix, found in groups.items()}


def _add(asked: _Asked, group: int, keys: list[bytes], *, windowed: bool, load: bool) -> None:
    hashes = [hash_of(key) for key in keys]
    asked.groups.append(Wanted(group=group, windowed=windowed, load=load, hashes=hashes))
    asked.keys.append(keys)
