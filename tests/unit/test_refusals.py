"""What is remembered and logged of requests that were answered with a no."""

import logging

import pytest

from sidecar.handlers.refusals import Refusals
from sidecar.telemetry import Telemetry


@pytest.fixture
def refusals() -> Refusals:
    return Refusals(Telemetry())


def test_a_flood_of_one_kind_hides_no_other(refusals: Refusals) -> None:
    refusals.add("register_kv_cache", "bad_registration", "Mamba")
    for number in range(1000):
        refusals.add("store", "bad_blocks", f"block {number}")
    flood, other = refusals.latest()
    assert (flood.operation, flood.reason, flood.count) == ("store", "bad_blocks", 1000)
    assert flood.detail == "block 999"
    assert (other.reason, other.count, other.detail) == ("bad_registration", 1, "Mamba")
    assert refusals.by_reason == {"bad_blocks": 1000, "bad_registration": 1}


def test_the_kind_that_came_last_is_first(refusals: Refusals) -> None:
    for operation in ("store", "retrieve", "lookup", "retrieve"):
        refusals.add(operation, "closing", "")
    assert [each.operation for each in refusals.latest()] == ["retrieve", "lookup", "store"]


def test_what_a_client_sent_is_cut(refusals: Refusals) -> None:
    refusals.add("store", "bad_payload", "x" * 10_000)
    assert len(refusals.latest()[0].detail) == 200


def test_one_line_of_a_kind(refusals: Refusals, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for operation in ("store", "store", "retrieve", "store"):
            refusals.add(operation, "closing", "a\nb")
    assert caplog.messages == [
        r"store refused, closing: 'a\nb'",
        r"retrieve refused, closing: 'a\nb'",
    ]
