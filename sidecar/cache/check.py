"""Whether the accounts of the L1 are true: every slot, every count, every hold.

It looks at everything there is, a few microseconds an object: for tests after each step, and
for people who suspect something.
"""

from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise

from sidecar.cache.entry import Entry, State
from sidecar.cache.keys import NOBODY
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases
from sidecar.cache.policies.isolated import Isolated
from sidecar.cache.policies.noop import NoEviction
from sidecar.cache.slots import Slots

_HAS_SLOT = set(State) - {State.GONE}


def problems(l1: L1, leases: Leases) -> list[str]:
    """What is wrong, one line each; nothing, if the server has no bug. Between two calls only."""
    return [*_index(l1), *_slots(l1, l1._slots), *_order(l1), *_holds(l1, leases)]


def _index(l1: L1) -> Iterator[str]:
    spaces = l1.spaces()
    for space in spaces:
        if space.is_empty:
            yield f"an empty space: {space.key}"
        for state, entries in ((State.READY, space.ready), (State.WRITING, space.writing)):
            for hash, entry in entries.items():
                if entry.hash != hash or entry.space is not space or entry.state is not state:
                    yield f"{_name(entry)} stands among what is {state}"
                if l1._slots.at(entry.start) is not entry:
                    yield f"{_name(entry)} has no slot"
    inherited = Counter(entry.space for entry in l1._slots if entry.state is State.INHERITED)
    if inherited != {space: space.inherited for space in spaces if space.inherited}:
        yield "slots that were inherited are not what their spaces count"
    for what, count, found in (
        ("objects", l1.objects, sum(len(space.ready) for space in spaces)),
        ("writing", l1.writing, sum(len(space.writing) for space in spaces)),
    ):
        if count != found:
            yield f"{what} is {count}, found are {found}"


def _slots(l1: L1, slots: Slots) -> Iterator[str]:
    """Slots and free ranges cover what is usable, each byte once."""
    vacated = set(slots._vacated)
    for entry in slots:
        if (entry.state in _HAS_SLOT) == (entry in vacated):
            yield f"{_name(entry)} has a slot"
        if slots._ending_at(entry.end) is not entry:
            yield f"{_name(entry)} is not known by the end of its slot"
    taken = [(entry.start, entry.end) for entry in slots]
    free = [(start, start + size) for part in slots._parts for start, size in part.ranges()]
    for (_, end), (start, _) in pairwise(sorted(taken + free)):
        if start < end:
            yield f"byte {start} belongs to two"
    if sum(end - start for start, end in taken + free) != l1.usable_bytes:
        yield f"slots and free ranges are not the {l1.usable_bytes} usable bytes"
    used = sum(entry.slot_bytes for entry in slots if entry not in vacated)
    if used != slots.used_bytes:
        yield f"used_bytes is {slots.used_bytes}, found are {used}"
    by_salt: Counter[str] = Counter()
    for entry in slots:
        if entry not in vacated and entry.space.key is not NOBODY:
            by_salt[_salt(entry)] += entry.slot_bytes
    counted = {salt: l1.quotas.used(salt) for salt in l1.quotas.salts()}
    if counted != by_salt:
        yield f"bytes by salt are {counted}, found are {dict(by_salt)}"


def _order(l1: L1) -> Iterator[str]:
    """Candidates for eviction are those that are evictable, in their order."""
    candidates = list(l1._policy.candidates())
    for before, after in pairwise(candidates):
        of_one_order = not isinstance(l1._policy, Isolated) or _salt(before) == _salt(after)
        if of_one_order and before.place >= after.place:
            yield f"candidates for eviction are out of order: {_name(before)}, {_name(after)}"
    evictable = {
        entry for space in l1.spaces() for entry in space.ready.values() if entry.evictable
    }
    if isinstance(l1._policy, NoEviction):
        evictable = set()
    for entry in evictable ^ set(candidates):
        yield f"{_name(entry)} is {'not ' if entry in evictable else ''}a candidate for eviction"


def _holds(l1: L1, leases: Leases) -> Iterator[str]:
    lookups = list(leases.lookups())
    promised: Counter[Entry] = Counter()
    for lookup in lookups:
        for rank, objects in enumerate(lookup.objects):
            for readers, entries in zip(lookup.readers[rank], objects, strict=True):
                promised.update(entries if readers else ())
    promised.update(l1.protections.entries())
    known = {*l1._slots, *(entry for entry in promised if entry.space.holds is l1)}
    for entry in known:
        if entry.leases != promised[entry]:
            yield f"{_name(entry)} has {entry.leases} leases, promised are {promised[entry]}"
        if entry.pins < int(entry.state is State.DROPPED):
            yield f"{_name(entry)} has {entry.pins} pins"
        if (entry.state is State.PROMISED) != (entry in l1._promised):
            yield f"{_name(entry)} is not among what was promised, or should not be"
    protected = sum(entry.slot_bytes for entry in l1.protections.entries())
    if protected != l1.protections.nbytes or protected > l1.protections.limit:
        yield f"{l1.protections.nbytes} bytes are protected, found are {protected}"
    held = sum(1 for entry in known if entry.leases or entry.pins)
    if held != l1.held:
        yield f"{l1.held} objects have leases or pins, found are {held}"
    live = sum(1 for left in chain.from_iterable(x.readers for x in lookups) for n in left if n)
    if (live, len(lookups)) != (leases.live, leases.open):
        yield f"live leases are {leases.live} of {leases.open}, found are {live} of {len(lookups)}"


def _salt(entry: Entry) -> str:
    return entry.space.key.cache_salt


def _name(entry: Entry) -> str:
    return f"chunk {entry.hash.hex()} ({entry.state})"
