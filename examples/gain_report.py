"""What examples.gain shows of its runs: a table and a plot."""

from collections.abc import Iterable
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
    rows = [row("", (r.name for r in runs)), row("prompt tokens", (r.vllm.prompt for r in runs))]
    for field, source in SOURCES.items():
        tokens = [vars(r.vllm)[field] for r in runs]
        rows.append(row(f"  {source}", tokens))
        shares = (x / max(r.vllm.prompt, 1) for x, r in zip(tokens, runs, strict=True))
        rows.append(row("", (f"{share:.1%}" for share in shares)))
    rows += [
        row("found by the sidecar in L1", (r.sidecar.hit_l1 for r in runs)),
        row("                     in L2", (r.sidecar.hit_l2 for r in runs)),
        row("requests done", (r.bench["completed"] for r in runs)),
        row("requests failed", (r.bench["failed"] for r in runs)),
        row("seconds in all", (f"{r.bench['duration']:.1f}" for r in runs)),
        row("ms to first token, mean", (round(r.bench["mean_ttft_ms"]) for r in runs)),
        row("                   median", (round(r.bench["median_ttft_ms"]) for r in runs)),
        row("                   p99", (round(r.bench["p99_ttft_ms"]) for r in runs)),
    ]
    return "\n".join(rows)


def row(name: str, cells: Iterable[str | int]) -> str:
    texts = (cell if isinstance(cell, str) else f"{cell:,}" for cell in cells)
    return f"{name:<28}" + "".join(f"{text:>12}" for text in texts)


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
