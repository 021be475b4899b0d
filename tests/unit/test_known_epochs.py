"""What others may have cleared while nobody here looked is in doubt, and that alone."""

from __future__ import annotations

import os

import pytest

from sidecar.cache.arena import PIECE_BYTES
from sidecar.cache.journal import Journal
from sidecar.cache.records import HEAD_BYTES, TABLE_AT, head_of, read_head, table_bytes
from sidecar.tiers import epochs, known_epochs
from sidecar.tiers.base import TierError
from sidecar.tiers.epochs import new_tag
from sidecar.tiers.names import ObjectName
from tests.support.tiers import Bench, Memory

HEAD = head_of(PIECE_BYTES, 0, [0], 256)


class Index:
    """That of a bench's L1."""

    def __init__(self, bench: Bench) -> None:
        self.fd = os.memfd_create("index")
        os.ftruncate(self.fd, TABLE_AT + table_bytes(PIECE_BYTES))
        bench.l1.journal = self.journal = Journal(self.fd, HEAD, {})

    @property
    def epochs(self) -> list[str]:
        return read_head(os.pread(self.fd, HEAD_BYTES, 0), HEAD).epochs


def refuse_marks(op: str, _: ObjectName | None) -> None:
    if op == "read_mark":
        raise TierError("EIO")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_epochs, "_LEARN_SECONDS", 0.0)


def learnt(*memories: Memory) -> Bench:
    bench = Bench(*memories)
    bench.tiers.epochs.learn()
    return bench


def test_an_unchanged_mark_is_no_doubt_and_any_other_is() -> None:
    near, far = Memory(shared=True), Memory(shared=True)
    far.mark = new_tag()
    bench = learnt(near, far)
    index = Index(bench)
    bench.tick()
    assert index.epochs == ["", far.mark]
    assert learnt(near, far).tiers.epochs.doubt(index.epochs) == ""
    assert learnt(far).tiers.epochs.doubt(index.epochs) == ""
    for changed in (near, far):
        before, changed.mark = changed.mark, new_tag()
        assert "cleared" in learnt(near, far).tiers.epochs.doubt(index.epochs)
        changed.mark = before
    third = Memory(shared=True)
    third.mark = new_tag()
    assert "new" in learnt(near, far, third).tiers.epochs.doubt(index.epochs)
    assert learnt(near).tiers.epochs.doubt([]), "of an L1 that knew of no L2"


def test_what_is_written_down_follows_clears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "CHECKED_SECONDS", 0.0)
    monkeypatch.setattr("sidecar.tiers.marking.CHECKED_SECONDS", 0.0)
    memory = Memory(shared=True)
    bench = learnt(memory)
    index = Index(bench)
    bench.l1.clear(force=True)
    bench.tiers.clear()
    bench.run_ticking(lambda: index.epochs == [memory.mark] and memory.mark)
    bench.store(1)
    memory.mark = new_tag(memory.mark or "")
    bench.run_ticking(lambda: index.epochs == [memory.mark])
    assert not bench.l1.objects


@pytest.mark.usefixtures("impatient")
def test_what_cannot_be_read_is_in_doubt_and_so_is_what_is_stored_until_then() -> None:
    memory = Memory(shared=True)
    memory.before = refuse_marks
    bench = learnt(memory)
    index = Index(bench)
    assert "cannot be read" in bench.tiers.epochs.doubt([""])
    bench.store(1)
    bench.tick()
    assert bench.l1.objects and not index.epochs
    memory.before = lambda op, name: None
    memory.mark = new_tag()  # others clear it, whom nobody hears here
    bench.run_ticking(lambda: index.epochs == [memory.mark])
    assert not bench.l1.objects
    bench.store(2)
    bench.tick()
    assert bench.l1.objects, "that is done once"


def test_a_mark_that_fails_at_first_is_read_again() -> None:
    memory, failures = Memory(shared=True), iter([None, None])

    def fail_twice(op: str, _: ObjectName | None) -> None:
        if next(failures, op) is None:
            raise TierError("EIO")

    memory.before = fail_twice
    assert learnt(memory).tiers.epochs.doubt([""]) == ""


def test_an_index_has_room_for_the_epochs_of_few_backends() -> None:
    bench = Bench()
    index = Index(bench)
    index.journal.epochs([new_tag() for _ in range(64)])
    assert len(index.epochs) == 64
    index.journal.epochs([new_tag() for _ in range(200)])
    assert index.journal.failed
