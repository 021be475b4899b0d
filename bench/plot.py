"""A picture of the medians: one small panel a figure, the peer beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.figures import Row

_COLUMNS = 4
OTHERS, OURS = "#9aa5b1", "#1f77b4"
_COLOURS = {"lmcache": OTHERS, "kv-sidecar": OURS}
# Of SVG: text stays text, and the same figures make the same file.
STYLE: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "kv-sidecar"}
NO_DATE = {"Date": None}


def write(path: Path, results: Sequence[Row]) -> bool:
    """Draws the figures that both servers have; False when matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return False
    shown = [row for row in results if row.peer is not None and row.ours is not None]
    shown = [row for row in shown if row.figure.target.text()] or shown
    if not shown:
        return False
    lines = -(-len(shown) // _COLUMNS)
    canvas = Canvas(figsize=(3.2 * _COLUMNS, 2.6 * lines), layout="constrained")
    panels = canvas.subplots(lines, _COLUMNS, squeeze=False).flat
    for row, panel in zip(shown, panels, strict=False):
        values = [row.peer, row.ours]
        bars = panel.bar(list(_COLOURS), values, color=list(_COLOURS.values()), width=0.6)
        panel.bar_label(bars, fmt="%.3g", fontsize=8)
        panel.set_title(row.figure.title.strip(), fontsize=8, wrap=True)
        panel.set_ylabel(row.figure.unit, fontsize=8)
        panel.margins(y=0.2)
        panel.tick_params(labelsize=8)
        for bound in (row.figure.target.at_most, row.figure.target.at_least):
            if bound is not None:
                panel.axhline(bound, color="#c0392b", linestyle="--", linewidth=1)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in list(panels):
        panel.set_visible(False)
    with rc_context(STYLE):
        canvas.savefig(path, dpi=120, metadata=NO_DATE)
    return True
