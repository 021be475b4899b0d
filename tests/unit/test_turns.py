"""Turns of clients: none waits while there is room, or while it has none, whoever gives up."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sidecar.flow import Flow, Flows, Outcome
from sidecar.tiers.turns import Turns

MOST = 3
STEPS = st.lists(st.tuples(st.sampled_from(["take", "end", "cancel"]), st.integers(0, 4)))


@given(STEPS)
def test_turns_are_fair(steps: list[tuple[str, int]]) -> None:
    flows, turns = Flows(lambda seconds, fn: None), Turns(MOST)
    waiting: list[tuple[bytes, Flow[None]]] = []  # the model: in the order in which they came
    running: list[tuple[bytes, Outcome[None]]] = []

    async def flow(client: bytes, over: Outcome[None]) -> None:
        await turns.take(client)
        running.append((client, over))
        await over
        turns.end(client)

    overs: dict[Flow[None], Outcome[None]] = {}
    for step, number in steps:
        client = bytes([number])
        if step == "take":
            over: Outcome[None] = Outcome()
            begun = flows.start(flow(client, over))
            overs[begun] = over
            waiting.append((client, begun))
        elif step == "end" and running:
            running.pop(number % len(running))[1].set(None)
        elif step == "cancel" and waiting:
            waiting.pop(number % len(waiting))[1].cancel("nobody waits")
        flows.run()
        begun_now = [over for _, over in running]
        waiting = [each for each in waiting if overs[each[1]] not in begun_now]
        count = Counter(client for client, _ in running)
        left = [client for client, _ in waiting]
        assert not any(count[client] == 0 for client in left), "one of each client at any time"
        assert not left or len(running) >= MOST
    assert all(turns._waiting.values()), "who does not wait is forgotten"
