"""Flows go on between two callbacks, end once, and can be cancelled wherever they wait."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.flow import Cancelled, Flows, Gate, Outcome, called_back, ended, first
from sidecar.loop import Loop


class Timers:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.waiting: list[tuple[float, Callable[[], None]]] = []
        self.flows = Flows(lambda seconds, fn: self.waiting.append((seconds, fn)))

    def pass_seconds(self, seconds: float) -> None:
        due = [fn for at, fn in self.waiting if at <= seconds]
        self.waiting = [(at - seconds, fn) for at, fn in self.waiting if at > seconds]
        for fn in due:
            fn()
        self.flows.run()


@pytest.fixture
def timers() -> Timers:
    return Timers()


@pytest.fixture
def flows(timers: Timers) -> Flows:
    return timers.flows


def test_a_flow_runs_to_its_first_wait_and_goes_on_between_callbacks(flows: Flows) -> None:
    told: list[str] = []
    outcome: Outcome[str] = Outcome()

    async def work() -> str:
        told.append("begun")
        told.append(await outcome)
        return "end"

    flow = flows.start(work())
    assert told == ["begun"]
    outcome.set("result")
    assert told == ["begun"], "whoever sets an outcome is not called back into"
    flows.run()
    assert told == ["begun", "result"] and flow.done


def test_what_is_there_already_is_not_waited_for(flows: Flows) -> None:
    outcome: Outcome[int] = Outcome()
    outcome.set(7)

    async def work() -> int:
        return await outcome + await outcome

    flow = flows.start(work())
    assert flow.done and flow.result() == 14


def test_flows_wait_for_flows_and_errors_rise_to_who_waits(flows: Flows) -> None:
    broken: Outcome[int] = Outcome()

    async def inner() -> int:
        return await broken

    async def outer() -> str:
        try:
            await flows.start(inner())
        except ValueError as error:
            return f"handled {error}"
        return "no error"

    flow = flows.start(outer())
    broken.fail(ValueError("it"))
    flows.run()
    assert flow.result() == "handled it"


def test_an_error_that_nobody_waits_for_is_logged(
    flows: Flows, caplog: pytest.LogCaptureFixture
) -> None:
    async def work() -> None:
        raise ValueError("unseen")

    with caplog.at_level(logging.ERROR):
        flows.start(work())
    assert "work failed" in caplog.text and "unseen" in caplog.text


def test_an_outcome_is_set_once() -> None:
    outcome: Outcome[int] = Outcome()
    outcome.set(1)
    with pytest.raises(RuntimeError):
        outcome.set(2)
    with pytest.raises(RuntimeError):
        outcome.fail(ValueError())


def test_who_is_cancelled_can_still_wait_for_the_thread_that_has_its_bytes(flows: Flows) -> None:
    copied: Outcome[str] = Outcome()
    told: list[str] = []

    async def work() -> None:
        try:
            await copied
        except Cancelled as cancelled:
            told.append(cancelled.reason)
            told.append(await copied)

    flow = flows.start(work())
    flow.cancel("worker gone")
    flows.run()
    assert told == ["worker gone"] and not flow.done
    copied.set("slot free")
    flows.run()
    assert told == ["worker gone", "slot free"] and flow.done


def test_no_cancellation_ends_the_wait_for_a_thread(flows: Flows) -> None:
    copied: Outcome[str] = Outcome()
    flow = flows.start(ended(copied))
    for reason in ("late", "later"):
        flow.cancel(reason)
        flows.run()
        flow.stop(reason)
    assert not flow.done
    copied.fail(ValueError("of no interest"))
    flows.run()
    assert flow.done and flow.result() is None


def test_a_result_and_a_cancellation_at_once_lose_neither(flows: Flows) -> None:
    copied: Outcome[str] = Outcome()

    async def work() -> str:
        try:
            return await copied
        except Cancelled:
            return f"cancelled, {await copied}"

    flow = flows.start(work())
    copied.set("copied")
    flow.cancel("late")
    flows.run()
    assert flow.result() == "cancelled, copied"
    flow.cancel("again")
    flows.run()


def test_a_flow_that_is_cancelled_while_it_runs_hears_of_it_where_it_waits(flows: Flows) -> None:
    never: Outcome[None] = Outcome()
    told: list[str] = []

    async def work() -> None:
        begun.append(None)
        if len(begun) == 2:
            flow.cancel("by itself")
        told.append("ran on")
        await never

    begun: list[None] = []
    go: Outcome[None] = Outcome()

    async def outer() -> None:
        await go
        begun.append(None)
        await work()

    flow = flows.start(outer())
    go.set(None)
    flows.run()
    assert told == ["ran on"] and flow.done and isinstance(flow._error, Cancelled)


def test_a_flow_that_is_stopped_has_run_when_the_call_returns(flows: Flows) -> None:
    copied: Outcome[str] = Outcome()
    told: list[str] = []

    async def work() -> None:
        try:
            await copied
        except Cancelled as cancelled:
            told.append(cancelled.reason)
        flow.stop("by itself")

    flow = flows.start(work())
    flow.stop("a store has the bytes")
    assert told == ["a store has the bytes"] and flow.done
    with pytest.raises(RuntimeError, match="itself"):
        flow.result()
    flow.stop("again")
    copied.set("late")
    flows.run()


def test_a_turn_later_others_have_run(flows: Flows) -> None:
    told: list[str] = []

    async def work() -> None:
        await flows.turn()
        told.append("flow")

    flows.start(work())
    told.append("caller")
    flows.run()
    assert told == ["caller", "flow"]


def test_nobody_is_woken_by_what_it_does_not_wait_for_any_more(flows: Flows) -> None:
    old: Outcome[str] = Outcome()
    new: Outcome[str] = Outcome()

    async def work() -> str:
        try:
            return await old
        except Cancelled:
            return await new

    flow = flows.start(work())
    flow.cancel("go on")
    flows.run()
    old.set("old")
    flows.run()
    assert not flow.done
    new.set("new")
    flows.run()
    assert flow.result() == "new"


def test_time_passes(timers: Timers) -> None:
    flow = timers.flows.start(first(timers.flows.sleep(5.0)))
    timers.pass_seconds(4.0)
    assert not flow.done
    timers.pass_seconds(1.0)
    assert flow.done


def test_the_first_of_several(flows: Flows) -> None:
    one, other = Outcome[int](), Outcome[int]()
    flow = flows.start(first(one, other))
    other.set(1)
    one.set(2)
    flows.run()
    assert flow.done


def test_who_waits_for_the_first_leaves_nothing_with_the_others(flows: Flows) -> None:
    never: Outcome[None] = Outcome()

    async def wait() -> None:
        for _ in range(10):
            await first(never, flows.turn())

    flows.start(wait())
    flows.run()
    assert not never._waiting


def test_callbacks_wait_like_flows(flows: Flows) -> None:
    told: list[str] = []
    outcome: Outcome[None] = Outcome()
    flows.when(outcome, lambda: told.append("before"))
    outcome.set(None)
    flows.when(outcome, lambda: told.append("after"))
    assert not told
    flows.run()
    assert told == ["before", "after"]


def test_a_callback_that_fails_costs_nobody_else(flows: Flows) -> None:
    told: list[str] = []
    outcome: Outcome[None] = Outcome()

    def fail() -> None:
        raise ValueError

    flows.when(outcome, fail)
    flows.when(outcome, lambda: told.append("next"))
    outcome.set(None)
    flows.run()
    assert told == ["next"]


def test_what_calls_back_is_awaited(flows: Flows) -> None:
    given: list[Callable[[int], None]] = []
    outcome = called_back(given.append)

    async def work() -> int:
        return await outcome

    flow = flows.start(work())
    given[0](5)
    flows.run()
    assert flow.result() == 5


@given(
    width=st.integers(1, 3),
    steps=st.lists(st.sampled_from(["enter", "leave", "cancel"]), max_size=40),
)
def test_a_gate_lets_so_many_through_in_turn_whoever_is_cancelled(
    width: int, steps: list[str]
) -> None:
    flows, gate = Flows(lambda seconds, fn: None), Gate(width)
    inside: list[int] = []
    entered: list[int] = []
    ends: dict[int, Outcome[None]] = {}

    async def visit(number: int) -> None:
        async with gate:
            entered.append(number)
            inside.append(number)
            try:
                await ends[number]
            finally:
                inside.remove(number)

    visits = []
    for step in steps:
        if step == "enter":
            ends[len(visits)] = Outcome()
            visits.append(flows.start(visit(len(visits))))
        elif step == "leave" and inside:
            ends[inside[0]].set(None)
        elif step == "cancel" and visits:
            visits[len(entered) % len(visits)].cancel("gone")
        assert len(inside) <= width
        flows.run()
        under_way = [n for n, flow in enumerate(visits) if not flow.done]
        assert sorted(inside) == under_way[: len(inside)] and len(inside) == min(
            width, len(under_way)
        )
        assert entered == sorted(entered)


def test_the_loop_runs_flows_between_its_callbacks() -> None:
    loop = Loop()
    told: list[str] = []

    async def work() -> None:
        told.append(await outcome)
        await loop.flows.sleep(0.0)
        loop.stop()

    outcome: Outcome[str] = Outcome()
    loop.post(lambda: (loop.flows.start(work()), outcome.set("first")))
    loop.post(lambda: told.append("second"))
    loop.run()
    assert told == ["first", "second"]
