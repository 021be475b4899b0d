"""Epochs: nothing that was stored before a clear is ever found again, by anybody."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.tiers import epochs
from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.adapters.file_io import DirectIO
from sidecar.tiers.base import Corrupt, Missing, TierError
from sidecar.tiers.epochs import Epoch, Marks, Replaced, new_tag
from sidecar.tiers.names import ObjectName, is_tag, parse_path
from tests.support.tiers import Memory, page_aligned

RECORD = page_aligned(4096)
NAMES = [ObjectName("space@1.0@" + "0" * 32, bytes([n]) * 32) for n in range(4)]


@pytest.fixture(autouse=True)
def _always_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have cleared is seen at once, so that the test need not wait."""
    monkeypatch.setattr(epochs, "CHECKED_SECONDS", 0.0)


class Sidecar:
    """The epochs of one process, and the few lines of a backend that change them."""

    def __init__(self, memory: Memory) -> None:
        self.marks = Marks(memory, "memory")
        self.epoch = Epoch(self.marks)

    def clear(self) -> None:
        self.begin(Epoch(self.marks, self.epoch.next_tag()))
        self.epoch.publish()

    def begin(self, epoch: Epoch) -> None:
        self.epoch.end()
        self.epoch = epoch

    def adopting(self, call: Callable[[], object]) -> object:
        """What `call` returns, None if it fails; as a backend does, it follows others."""
        try:
            return call()
        except Replaced:
            self.begin(Epoch(self.marks))
        except TierError:
            pass
        return None

    def store(self, name: ObjectName) -> bool:
        stored = self.adopting(lambda: self.epoch.store(name, RECORD) or True)
        return bool(stored)

    def finds(self, name: ObjectName) -> bool:
        return self.adopting(lambda: self.epoch.find([name])) not in (None, [None])


def test_tags_are_read_back_as_part_of_a_name() -> None:
    tag = new_tag()
    assert is_tag(tag) and is_tag("") and not is_tag(tag.upper())
    name = NAMES[1]._replace(epoch=tag)
    assert parse_path(name.path) == name
    assert parse_path(NAMES[1].path) == NAMES[1]
    assert parse_path(f"x{name.path}") is None and parse_path(f"/{NAMES[1].path}") is None
    assert "" < tag < new_tag(tag) < new_tag(new_tag(tag))
    assert new_tag("g29991231T235959-000000000000").startswith("g30000101T000000-")


@pytest.mark.parametrize("seed", range(40))
def test_whoever_stores_clears_and_restarts_no_clear_is_undone(seed: int) -> None:
    """Nothing can be deleted. The backend loses its mark, or returns to an earlier one."""
    draw, memory = random.Random(seed), Memory(shared=True)
    sidecars = [Sidecar(memory) for _ in range(3)]
    cleared: set[ObjectName] = set()  # their full names: what was there at a clear
    marks: list[str] = []
    for _ in range(120):
        who = draw.randrange(3)
        sidecar, name = sidecars[who], draw.choice(NAMES)
        match draw.choice(["store", "store", "find", "find", "clear", "restart", "lose", "return"]):
            case "store":
                sidecar.store(name)
            case "clear":
                sidecar.clear()
                cleared |= memory.records.keys()
                marks.append(memory.mark or "")
            case "restart":
                sidecars[who] = Sidecar(memory)
            case "lose":
                memory.mark = None
            case "return" if marks:
                # The backend forgets its last writes: who has seen them puts that right.
                memory.mark = draw.choice(marks)
                sidecars.sort(key=lambda each: each.marks.newest, reverse=True)
                if memory.mark > sidecars[0].marks.newest:
                    return  # nobody has
                for each in [sidecars[0]] * 2 + sidecars * 2:  # the first sees it, and then acts
                    assert not each.finds(name) or record(each, name) not in cleared
            case _:
                assert not sidecar.finds(name) or record(sidecar, name) not in cleared


def record(sidecar: Sidecar, name: ObjectName) -> ObjectName:
    """The full name of what the sidecar finds."""
    assert sidecar.epoch.tag is not None
    return name._replace(epoch=sidecar.epoch.tag)


def test_what_was_begun_before_a_clear_stays_before_it() -> None:
    """Also where it was not known yet which epoch counts."""
    memory = Memory()
    memory.mark = None
    sidecar = Sidecar(memory)
    before = sidecar.epoch
    sidecar.clear()
    with pytest.raises(Missing):
        before.store(NAMES[0], RECORD)
    assert not memory.records
    sidecar.store(NAMES[1])
    before = sidecar.epoch
    sidecar.clear()
    before.store(NAMES[0], RECORD)
    assert not sidecar.finds(NAMES[0]) and not Sidecar(memory).finds(NAMES[0])


def test_a_mark_that_was_replaced_does_not_count_again() -> None:
    """A backend that was restarted without its last writes."""
    memory = Memory()
    sidecar = Sidecar(memory)
    sidecar.store(NAMES[0])
    sidecar.clear()
    memory.mark = ""
    sidecar.finds(NAMES[0])  # sees it, and begins anew
    assert not sidecar.finds(NAMES[0])
    assert memory.mark and not Sidecar(memory).finds(NAMES[0])


def test_a_mark_that_cannot_be_written_is_no_clear() -> None:
    memory = Memory()

    def full(op: str, _: ObjectName | None) -> None:
        if op == "write_mark":
            raise TierError("ENOSPC")

    memory.before = full
    with pytest.raises(TierError, match="ENOSPC"):
        Sidecar(memory).clear()


def test_a_backend_that_drops_what_is_written_is_found_out() -> None:
    class Forgetful(Memory):
        def write_mark(self, mark: str) -> None:
            pass

    with pytest.raises(TierError, match="does not keep"):
        Sidecar(Forgetful()).clear()


def test_the_mark_is_not_read_for_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "CHECKED_SECONDS", 60.0)
    memory, reads = Memory(), []
    memory.before = lambda op, _: reads.append(op) if op == "read_mark" else None
    sidecar = Sidecar(memory)
    for name in NAMES:
        sidecar.store(name)
        assert sidecar.finds(name)
    assert len(reads) == 1


def test_nonsense_for_a_mark_is_none() -> None:
    memory = Memory()
    memory.mark = "../../etc"
    sidecar = Sidecar(memory)
    sidecar.store(NAMES[0])
    assert is_tag(memory.mark) and memory.mark


def test_a_clear_by_a_clock_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows nothing of a newer epoch that another has begun just now."""
    memory = Memory(shared=True)
    slow, fast = Sidecar(memory), Sidecar(memory)
    for sidecar in (slow, fast):
        sidecar.finds(NAMES[0])
    fast.begin(Epoch(fast.marks, "g29991231T235959-000000000000"))
    fast.epoch.publish()
    fast.store(NAMES[0])
    slow.clear()
    assert memory.mark > "g29991231T235959-000000000000"
    assert [sidecar.finds(NAMES[0]) for sidecar in (slow, fast, fast)] == [False] * 3
    slow.store(NAMES[1])
    assert fast.finds(NAMES[1])


def test_a_mark_that_is_no_file_is_no_word_on_a_record(tmp_path: Path) -> None:
    files = Files(str(tmp_path), DirectIO(), direct=False)
    files.open(RECORD)
    (tmp_path / "epoch").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TierError, match="mark: type") as raised:
        Epoch(Marks(files, "fs")).load(NAMES[0], RECORD)
    assert not isinstance(raised.value, Corrupt)
    files.close()
