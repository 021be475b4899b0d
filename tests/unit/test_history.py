"""The rows behind the dashboard's charts: bounded, numbered, counted from the start."""

from types import SimpleNamespace
from typing import Any

import pytest

from sidecar.handlers.samples import Samples
from sidecar.telemetry import Telemetry

KEPT = 300


class Clock:
    """A core with real counters whose clock a test sets."""

    def __init__(self) -> None:
        self.time = 100.0
        self.telemetry = Telemetry()
        self.l1 = SimpleNamespace(used_bytes=0)
        self.catalog = SimpleNamespace(used_bytes=7)
        self.tiers = SimpleNamespace(backends=[SimpleNamespace(catalog=self.catalog)] * 2)

    def now(self) -> float:
        return self.time


@pytest.fixture
def core() -> Any:
    return Clock()


def rows(reply: dict[str, Any]) -> list[dict[str, float]]:
    return [dict(zip(reply["columns"], row, strict=True)) for row in reply["rows"]]


def test_there_is_a_row_to_count_from_at_once(core: Any) -> None:
    (row,) = rows(Samples(core).since(0))
    assert (row["age"], row["lookups"], row["l2_used_bytes"]) == (0.0, 0, 14)


def test_counters_are_summed_over_their_labels(core: Any) -> None:
    made, telemetry = Samples(core), core.telemetry
    telemetry.lookups_requests.add(1, "a", "")
    telemetry.lookups_requests.add(2, "b", "salt")
    telemetry.transfer_bytes.add(10, "store", "cpu")
    telemetry.transfer_bytes.add(20, "load", "cpu")
    telemetry.l2_transfer_bytes.add(30, "load", "disk")
    telemetry.l2_transfer_bytes.add(40, "load", "bucket")
    core.l1.used_bytes = 5
    core.time += 3
    made.sample()
    row = rows(made.since(0))[-1]
    assert (row["age"], row["lookups"], row["l1_used_bytes"]) == (3.0, 3, 5)
    assert (row["store_bytes"], row["load_bytes"]) == (10, 20)
    assert (row["l2_store_bytes"], row["l2_load_bytes"]) == (0, 70)


def test_only_rows_that_are_new(core: Any) -> None:
    made = Samples(core)
    for _ in range(4):
        core.time += 3
        made.sample()
    assert made.since(0)["taken"] == 5
    ages = [[row[0] for row in made.since(taken)["rows"]] for taken in (3, 5, 10**9)]
    assert ages == [[9.0, 12.0], [], []]


def test_it_forgets_the_oldest(core: Any) -> None:
    made = Samples(core)
    for _ in range(2 * KEPT):
        core.time += 3
        made.sample()
    reply = made.since(0)
    assert (reply["taken"], len(reply["rows"])) == (2 * KEPT + 1, KEPT)
    assert reply["rows"][-1][0] == reply["age"] == 6.0 * KEPT
    assert len(made.since(KEPT)["rows"]) == KEPT
