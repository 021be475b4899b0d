"""The runs as a picture: how long each turn waited, and where its tokens came from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from bench import plot
from bench.routing.report import LOADS, SIDES, SOURCES, figures
from bench.routing.sides import Run

_COLOURS = {False: plot.OTHERS, True: plot.OURS}
_SOURCE_COLOURS = {"own_cache": "#2ca02c", "transferred": "#1f77b4", "computed": "#c0392b"}
_STYLE = plot.STYLE | {"font.size": 9}


def write(path: Path, runs: Sequence[Run]) -> None:
    with matplotlib.rc_context(_STYLE):
        canvas = Figure(figsize=(10, 3.6), layout="constrained")
        *waits, tokens = canvas.subplots(1, len(LOADS) + 1, width_ratios=[1, 1, 1.1])
        for panel, at_once in zip(waits, LOADS, strict=True):
            _draw_waits(panel, [run for run in runs if run.at_once == at_once])
            panel.set_title(LOADS[at_once], fontsize=9)
        waits[0].set_ylabel("seconds to the first token")
        canvas.legend(
            *waits[0].get_legend_handles_labels(), loc="outside lower left", ncols=2, frameon=False
        )
        _draw_tokens(tokens, runs)
        for panel in (*waits, tokens):
            panel.spines[["top", "right"]].set_visible(False)
        canvas.savefig(path, format="svg", metadata=plot.NO_DATE)


def _draw_waits(panel: Any, runs: Sequence[Run]) -> None:
    """Each request as a point, the median of a turn's as a line."""
    for run in runs:
        colour, numbers = _COLOURS[run.announced], range(1, len(run.turns) + 1)
        waited = [[answer.seconds for answer in turn.answers] for turn in run.turns]
        panel.plot(
            numbers,
            [*map(median, waited)],
            color=colour,
            label=f"the router sees {SIDES[run.announced]}",
        )
        offset = 0.12 if run.announced else -0.12  # so that neither side hides the other
        for number, seconds in zip(numbers, waited, strict=True):
            panel.scatter([number + offset] * len(seconds), seconds, s=10, color=colour, lw=0)
    panel.set(xlabel="turn", ylim=(0, None), xticks=[1, 4, 7, 10])


def _draw_tokens(panel: Any, runs: Sequence[Run]) -> None:
    ordered = sorted(runs, key=lambda run: (run.at_once, run.announced), reverse=True)
    names = [f"{LOADS[run.at_once]},\n{SIDES[run.announced]}" for run in ordered]
    left = [0.0] * len(ordered)
    for source, name in SOURCES.items():
        widths = [100 * figures(run).shares[source] for run in ordered]
        panel.barh(names, widths, left=left, color=_SOURCE_COLOURS[source], label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    panel.set(xlabel="% of the prompt tokens of turns 2 to 10", xlim=(0, 100))
    panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(SOURCES), frameon=False)
