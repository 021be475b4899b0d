"""What the routing benchmark reads and shows; the run itself takes minutes."""

from pathlib import Path

import pytest

from bench.routing import picture, report
from bench.routing.decisions import Decision, decisions
from bench.routing.load import Answer, Turn, prompt
from bench.routing.sides import Run

# As Dynamo 1.6.1 prints them to a file, colours and all.
LOG = """\
\x1b[2m2026-11-30T15:43:57.9Z\x1b[0m \x1b[34mDEBUG\x1b[0m lower_tier_indexers: lower tier query \
\x1b[3mstorage_tier\x1b[0m\x1b[2m=\x1b[0mHostPinned \x1b[3mqueried_workers\x1b[0m\x1b[2m=\x1b[0m2 \
\x1b[3mmatched_workers\x1b[0m\x1b[2m=\x1b[0m1
\x1b[2m2026-11-30T15:43:58.1Z\x1b[0m \x1b[32m INFO\x1b[0m Selected worker \
\x1b[3mrouter_mode\x1b[0m\x1b[2m=\x1b[0m"kv" \x1b[3mworker_id\x1b[0m\x1b[2m=\x1b[0m12230207117829 \
\x1b[3mlogit\x1b[0m\x1b[2m=\x1b[0m36.6 \x1b[3mhost_pinned_blocks\x1b[0m\x1b[2m=\x1b[0m24 \
\x1b[3mdisk_blocks\x1b[0m\x1b[2m=\x1b[0m3
2026-11-30T15:43:58.8Z  INFO Selected worker router_mode="kv" worker_id=5661587637664 \
worker_type=decode logit=75.1 host_pinned_blocks=0 disk_blocks=0
"""


def test_decisions_are_read_from_the_routers_log() -> None:
    assert decisions(LOG) == [
        Decision(12230207117829, host_blocks=24, disk_blocks=3, holders=1),
        Decision(5661587637664, host_blocks=0, disk_blocks=0, holders=0),
    ]


def test_a_turn_begins_with_the_one_before() -> None:
    assert prompt("a user", 300).startswith(prompt("a user", 200))
    assert prompt("a user", 100) != prompt("another", 100)


def run(announced: bool = True, at_once: int = 1) -> Run:
    """Ten turns; nothing is cached in the first, and in the last all go to another worker."""
    first = Turn((Answer(1, 9.0),) * 4, {"computed": 8000})
    turn = Turn((Answer(1, 0.1),) * 4, {"own_cache": 100, "transferred": 800, "computed": 100})
    last = Turn((Answer(2, 2.0),) * 4, {"transferred": 200, "computed": 800})
    return Run(announced, at_once, (first, *[turn] * 8, last), seen=36, routed=58)


def test_figures_leave_out_the_first_turn() -> None:
    found = report.figures(run())
    assert found.shares == pytest.approx(
        {"own_cache": 800 / 9000, "transferred": 6600 / 9000, "computed": 1600 / 9000}
    )
    assert (found.returned, found.median, found.p90) == pytest.approx((8 / 9, 0.1, 1.05))


def test_the_table_has_a_row_for_each_run() -> None:
    header, _, *rows = report.table([run(at_once=4), run(announced=False)]).splitlines()
    assert [row.split(" | ")[:2] for row in rows] == [
        ["| one at a time", "the GPU"],
        ["| all users at once", "the GPU and the sidecar"],
    ]
    assert {row.count("|") for row in (header, *rows)} == {9}


def test_the_same_runs_make_the_same_picture(tmp_path: Path) -> None:
    runs = [run(announced, at_once) for announced in (False, True) for at_once in (1, 4)]
    for name in ("once.svg", "again.svg"):
        picture.write(tmp_path / name, runs)
    text = (tmp_path / "once.svg").read_text()
    assert text == (tmp_path / "again.svg").read_text()
    assert ">seconds to the first token<" in text
