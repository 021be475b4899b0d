"""Epochs: nothing that was stored before a clear is ever found again, by anybody."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sidecar.tiers import epochs
from sidecar.tiers.adapters.directory import Files
from sidecar.tiers.adapters.file_io import DirectIO
from sidecar.tiers.base import Adapter, Corrupt, Missing, Relocated, TierError
from sidecar.tiers.epochs import Epoch, Marks, Replaced, new_tag
from sidecar.tiers.names import ObjectName, is_tag, parse_path
from tests.support.tiers import Memory, page_aligned

RECORD = page_aligned(4096)
NAMES = [ObjectName("space@1.0@" + "0" * 32, bytes([n]) * 32) for n in range(4)]


@pytest.fixture(autouse=True)
def _always_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have cleared is seen at once, so that the test need not wait."""
    monkeypatch.setattr(epochs, "CHECKED_SECONDS", 0.0)


@pytest.fixture
def one_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags are as old as they look, also those of one second."""
    tags = (f"g20261130T101500-{number:012x}" for number in itertools.count())
    monkeypatch.setattr(epochs, "new_tag", lambda after="": next(tags))


class Sidecar:
    """The epochs of one process, and the few lines of a backend that change them."""

    def __init__(self, adapter: Adapter) -> None:
        self.marks = Marks(adapter, "memory")
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
        except Relocated:
            self.marks = self.marks.elsewhere()
            self.begin(Epoch(self.marks))
        except TierError:
            pass
        return None

    def settle(self) -> None:
        """Follow whatever has happened."""
        for _ in range(3):
            self.adopting(self.epoch.check)

    def store(self, name: ObjectName) -> bool:
        stored = self.adopting(lambda: self.epoch.store(name, RECORD) or True)
        return bool(stored)

    def finds(self, name: ObjectName) -> bool:
        return self.adopting(lambda: self.epoch.find([name])) not in (None, [None])


def test_tags_are_read_back_as_part_of_a_name() -> None:
    tag = new_tag()
    assert is_tag(tag) and is_tag("") and not is_tag(tag.upper())
    name = NAMES[1].in_epoch(tag)
    assert parse_path(name.path) == name
    assert parse_path(NAMES[1].path) == NAMES[1]
    assert parse_path(f"x{name.path}") is None and parse_path(f"/{NAMES[1].path}") is None
    assert "" < tag < new_tag(tag) < new_tag(new_tag(tag))
    assert new_tag("g29991231T235959-000000000000").startswith("g30000101T000000-")


@pytest.mark.parametrize("seed", range(40))
def test_whoever_stores_clears_and_restarts_no_clear_is_undone(seed: int, one_clock: None) -> None:
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
                sidecars.sort(key=lambda each: each.marks.cleared, reverse=True)
                if marks[-1] > sidecars[0].marks.cleared:
                    return  # nobody has seen the last clear
                for each in [sidecars[0]] * 2 + sidecars * 2:  # the first sees it, and then acts
                    assert not each.finds(name) or record(each, name) not in cleared
            case _:
                assert not sidecar.finds(name) or record(sidecar, name) not in cleared


def record(sidecar: Sidecar, name: ObjectName) -> ObjectName:
    """The full name of what the sidecar finds."""
    assert sidecar.epoch.tag is not None
    return name.in_epoch(sidecar.epoch.tag)


@pytest.mark.parametrize("seed", range(40))
def test_a_backend_that_is_empty_for_a_moment_is_as_it_was(seed: int, one_clock: None) -> None:
    """An address that leads to another server for a while, whose mark can be written or not: what
    was stored in the first is found by everybody who is back, but for what was cleared."""
    draw, memory = random.Random(seed), Memory(shared=True)
    memory.mark = draw.choice([None, ""])
    spare = memory
    sidecars = [Sidecar(memory) for _ in range(3)]
    there: set[ObjectName] = set()
    for _ in range(120):
        who = draw.randrange(3)
        sidecar, name = sidecars[who], draw.choice(NAMES)
        is_home = sidecar.marks.adapter is memory
        match draw.choice(["store", "store", "find", "find", "find", "clear", "restart", "move"]):
            case "store":
                if sidecar.store(name) and is_home:
                    there.add(name)
            case "clear" if all(each.marks.adapter is memory for each in sidecars):
                sidecar.clear()
                there.clear()
            case "restart":
                sidecars[who] = Sidecar(sidecar.marks.adapter)
            case "move" if is_home:
                if all(each.marks.adapter is memory for each in sidecars):
                    spare = empty(can_be_written=draw.random() < 0.7)
                sidecar.marks.adapter = spare
            case "move":
                sidecar.marks.adapter = memory
            case _ if is_home:
                sidecar.settle()
                assert sidecar.finds(name) == (name in there)


def empty(can_be_written: bool) -> Memory:
    def refuse(op: str, _: ObjectName | None) -> None:
        if op == "write_mark" and not can_be_written:
            raise TierError("READONLY")

    memory = Memory(shared=True)
    memory.mark, memory.before = None, refuse
    return memory


@pytest.mark.parametrize("seed", range(20))
def test_whoever_sees_another_directory_at_its_path_takes_nothing_from_the_first(
    tmp_path: Path, seed: int, one_clock: None
) -> None:
    """Shared ones, as when something is mounted over them for one of several. What was cleared in
    either is found by nobody, and a server's own clear holds in every place that it uses then."""
    draw = random.Random(seed)
    places = [Place(tmp_path / str(number)) for number in range(2)]
    seats = [Seat(tmp_path / f"of-{number}", places[0]) for number in range(3)]
    for _ in range(120):
        seat, name = draw.choice(seats), draw.choice(NAMES)
        match draw.choice(["store", "store", "find", "find", "find", "clear", "restart", "move"]):
            case "store":
                if seat.sidecar.store(name):
                    seat.arrive()
                    seat.place.there.add(name)
            case "clear":
                seat.clear()
            case "restart":
                seat.restart()
            case "move":
                seat.move(draw.choice(places))
            case _:
                seat.sidecar.settle()
                seat.arrive()
                assert seat.sidecar.finds(name) == (name in seat.place.there)
    for seat in seats:
        seat.files.close()


class Place:
    """A directory, what is to be found there, and how new its last clear is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.there: set[ObjectName] = set()
        self.cleared = 0
        path.mkdir()


class Seat:
    """A sidecar whose path leads to one place or another. `cleared` is the last of its own."""

    clears = itertools.count(1)

    def __init__(self, link: Path, place: Place) -> None:
        self.link, self.place = link, place
        link.symlink_to(place.path)
        self.start()

    def start(self) -> None:
        self.files = Files(f"{self.link}/l2", DirectIO(), direct=False, shared=True)
        self.files.open(RECORD)
        self.sidecar, self.cleared = Sidecar(self.files), 0

    def restart(self) -> None:
        self.files.close()
        self.start()

    def move(self, place: Place) -> None:
        self.link.unlink()
        self.link.symlink_to(place.path)
        self.place = place

    def arrive(self) -> None:
        """It has looked at its place."""
        if self.place.cleared < self.cleared:
            self.place.cleared = self.cleared
            self.place.there.clear()

    def clear(self) -> None:
        self.sidecar.settle()
        self.sidecar.clear()
        self.cleared = next(self.clears)
        self.arrive()


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
    memory.before = lambda op, _: failing() if op == "write_mark" else None
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
    assert memory.mark and Sidecar(memory).finds(NAMES[0])


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


def test_a_clear_that_is_written_late_hides_what_the_first_try_hid() -> None:
    """The mark that it found then, by a clock that is fast, is lost and comes back."""
    memory, fast = Memory(shared=True), "g29991231T235959-000000000000"
    sidecar = Sidecar(memory)
    sidecar.finds(NAMES[0])
    memory.mark = fast
    memory.records[NAMES[0].in_epoch(fast)] = RECORD.tobytes()
    memory.before = lambda op, _: failing() if op == "write_mark" else None
    with pytest.raises(TierError, match="ENOSPC"):
        sidecar.clear()
    memory.mark, memory.before = None, lambda op, _: None
    sidecar.epoch.publish()
    memory.mark = fast
    sidecar.settle()
    assert not sidecar.finds(NAMES[0])


def failing() -> None:
    raise TierError("ENOSPC")


def test_a_mark_that_is_no_file_is_no_word_on_a_record(tmp_path: Path) -> None:
    files = Files(str(tmp_path), DirectIO(), direct=False)
    files.open(RECORD)
    (tmp_path / "epoch").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TierError, match="mark: type") as raised:
        Epoch(Marks(files, "fs")).load(NAMES[0], RECORD)
    assert not isinstance(raised.value, Corrupt)
    files.close()
