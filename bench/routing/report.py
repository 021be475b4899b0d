"""The figures of the runs: a table in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles

from bench.routing.load import USERS
from bench.routing.sides import Run

SOURCES = {"own_cache": "GPU", "transferred": "sidecar", "computed": "computed"}
SIDES = {False: "the GPU", True: "the GPU and the sidecar"}
LOADS = {1: "one at a time", USERS: "all users at once"}
_HEADER = (
    *("users ask", "the router sees", "from the GPU", "from the sidecar", "computed"),
    *("to the node that has it", "first token, median", "90th percentile"),
)


@dataclass(frozen=True)
class Figures:
    """Of all turns but the first, of which nothing is cached on any side.

    `shares` of the prompt tokens by source; `returned` is the share of requests that went to the
    worker that had served the same user's turn before, whose sidecar has all of that; seconds.
    """

    shares: dict[str, float]
    returned: float
    median: float
    p90: float


def figures(run: Run) -> Figures:
    tokens: Counter[str] = Counter()
    for turn in run.turns[1:]:
        tokens.update(turn.tokens)
    seconds = [answer.seconds for turn in run.turns[1:] for answer in turn.answers]
    returned = [
        now.worker == then.worker
        for before, turn in pairwise(run.turns)
        for then, now in zip(before.answers, turn.answers, strict=True)
    ]
    return Figures(
        {source: tokens[source] / tokens.total() for source in SOURCES},
        sum(returned) / len(returned),
        median(seconds),
        quantiles(seconds, n=10, method="inclusive")[-1],
    )


def table(runs: Sequence[Run]) -> str:
    rows = [_row(_HEADER), "|---|---" + "|--:" * (len(_HEADER) - 2) + "|"]
    for run in sorted(runs, key=lambda run: (run.at_once, run.announced)):
        found = figures(run)
        shares = [f"{100 * share:.0f} %" for share in (*found.shares.values(), found.returned)]
        seconds = [f"{value:.2f} s" for value in (found.median, found.p90)]
        rows.append(_row([LOADS[run.at_once], SIDES[run.announced], *shares, *seconds]))
    return "\n".join(rows)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
