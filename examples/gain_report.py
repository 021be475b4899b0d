"""What examples.gain shows of its runs: a table and a plot."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.counters import SidecarCounts, VllmCounts

# The fields of VllmCounts.
SOURCES = {
    "computed": "computed",
    "own_cache": "from vLLM's own cache",
    "transferred": "from the sidecar",
}


@dataclass(frozen=True)
class Run:
    """One load on one server: what `vllm bench serve` measured, and what was counted meanwhile."""

    name: str
    bench: dict[str, Any]
    vllm: VllmCounts
    sidecar: SidecarCounts

    def first_token_seconds(self) -> list[float]:
        """Of the requests that succeeded."""
        pairs = zip(self.bench["ttfts"], self.bench["errors"], strict=True)
        return [seconds for seconds, error in pairs if not error]


def table(runs: list[Run]) -> str:
    def row(name: str, cell: Callable[[Run], str]) -> str:
        return f"{name:<28}" + "".join(f"{cell(run):>12}" for run in runs)

    rows = [row("", lambda r: r.name), row("prompt tokens", lambda r: f"{r.vllm.prompt:,}")]
    for field, source in SOURCES.items():
        rows.append(row(f"  {source}", lambda r, f=field: f"{vars(r.vllm)[f]:,}"))
        rows.append(row("", lambda r, f=field: f"{vars(r.vllm)[f] / max(r.vllm.prompt, 1):.1%}"))
    rows += [
        row("found by the sidecar in L1", lambda r: f"{r.sidecar.hit_l1:,}"),
        row("                     in L2", lambda r: f"{r.sidecar.hit_l2:,}"),
        row("requests done", lambda r: f"{r.bench['completed']}"),
        row("requests failed", lambda r: f"{r.bench['failed']}"),
        row("seconds in all", lambda r: f"{r.bench['duration']:.1f}"),
        row("ms to first token, mean", lambda r: f"{r.bench['mean_ttft_ms']:,.0f}"),
        row("                   median", lambda r: f"{r.bench['median_ttft_ms']:,.0f}"),
        row("                   p99", lambda r: f"{r.bench['p99_ttft_ms']:,.0f}"),
    ]
    return "\n".join(rows)


def others(run: Run) -> str | None:
    """What the table must not hide: prompts that are not of this load."""
    extra = run.vllm.prompt - run.bench["total_input_tokens"]
    return f"{run.name}: {extra:+,} prompt tokens are not of this load" if extra else None


def plot(runs: list[Run], file: Path) -> None:
    figure = Figure(figsize=(10, 4), layout="constrained")
    tokens, waits = figure.subplots(1, 2)
    names, below = [run.name for run in runs], np.zeros(len(runs))
    for field, source in SOURCES.items():
        heights = np.array([vars(run.vllm)[field] for run in runs])
        tokens.bar(names, heights, bottom=below, label=source)
        below += heights
    tokens.set(ylabel="prompt tokens", ylim=(0, max(below) * 1.35))
    tokens.legend()
    for run in runs:
        waits.ecdf(run.first_token_seconds(), label=run.name)
    waits.set(xlabel="seconds to the first token", ylabel="share of the requests", xlim=(0, None))
    waits.legend(loc="lower right")
    figure.savefig(file, format="png")
