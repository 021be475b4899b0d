"""What the sidecar gains on prompts that share prefixes, and where their tokens came from.

    python -m examples.gain --base-url http://127.0.0.1:8000        # one vLLM, the same load twice
    python -m examples.gain --base-url http://127.0.0.1:8000 --baseline-url http://127.0.0.1:8001

The load is `vllm bench serve --dataset-name prefix_repetition`: each of some prefixes begins
several prompts. With --baseline-url, a vLLM without the sidecar gets it first. The table counts
prompt tokens by vLLM's counters and hits by the sidecar's, as differences over each run; a plot
goes to --plot. The prompts are new each time, unless --seed is given. What follows `--` goes to
`vllm bench serve`, such as `-- --request-rate 4` or `-- --tokenizer Qwen/Qwen3-0.6B`.
"""

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from examples.counters import SidecarCounts, VllmCounts, sidecar_counts, vllm_counts
from examples.usage import Parser

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


def measure(name: str, url: str, given: argparse.Namespace) -> Run:
    print(f"{name}: vllm bench serve on {url} ...", flush=True)
    vllm, sidecar = vllm_counts(url), sidecar_counts(given.sidecar_url)
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        command = bench_command(url, result, given)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0 or not result.exists():
            lines = "\n".join(done.stdout.splitlines()[-15:])
            sys.exit(f"{lines}\nvllm bench serve failed with code {done.returncode}")
        bench = json.loads(result.read_text())
    return Run(name, bench, vllm_counts(url) - vllm, sidecar_counts(given.sidecar_url) - sidecar)


def bench_command(url: str, result: Path, given: argparse.Namespace) -> list[str]:
    options = {
        "--base-url": url.rstrip("/"),
        "--dataset-name": "prefix_repetition",
        "--prefix-repetition-num-prefixes": given.prefixes,
        "--prefix-repetition-prefix-len": given.prefix_tokens,
        "--prefix-repetition-suffix-len": given.suffix_tokens,
        "--prefix-repetition-output-len": given.output_tokens,
        "--num-prompts": given.prefixes * given.prompts,
        "--max-concurrency": given.concurrency,
        "--seed": given.seed,
        "--temperature": 0,
        "--result-dir": result.parent,
        "--result-filename": result.name,
    }
    flags = ["--ignore-eos", "--disable-tqdm", "--save-result", "--save-detailed"]
    pairs = [str(part) for option in options.items() for part in option]
    vllm = [sys.executable, "-m", "vllm.entrypoints.cli.main"]
    return [*vllm, "bench", "serve", *pairs, *flags, *given.bench]


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
        waits.ecdf(run.bench["ttfts"], label=run.name)
    waits.set(xlabel="seconds to the first token", ylabel="share of the requests", xlim=(0, None))
    waits.legend(loc="lower right")
    figure.savefig(file)


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8000", help="a vLLM with the sidecar (%(default)s)")
    add("--baseline-url", help="a vLLM without it")
    add("--prefixes", type=int, default=8, help="different ones (%(default)s)")
    add("--prompts", type=int, default=4, help="that begin with each (%(default)s)")
    add("--prefix-tokens", type=int, default=2048, help="%(default)s")
    add("--suffix-tokens", type=int, default=256, help="%(default)s")
    add("--output-tokens", type=int, default=16, help="%(default)s")
    add("--concurrency", type=int, default=4, help="requests at once (%(default)s)")
    add("--seed", type=int, default=secrets.randbelow(1 << 31), help="default: a new one")
    add("--plot", type=Path, default=Path("gain.png"), help="default %(default)s")
    add("bench", nargs="*", help="more arguments for vllm bench serve, after --")
    given = parser.parse_args()
    for url in filter(None, (given.base_url, given.baseline_url)):
        parser.check(vllm_counts, url)
    parser.check(sidecar_counts, given.sidecar_url)
    if not given.plot.parent.is_dir():
        parser.error(f"--plot: there is no {given.plot.parent}")
    return given


def main() -> int:
    given = parse()
    if given.baseline_url:
        loads = {"baseline": given.baseline_url, "sidecar": given.base_url}
    else:
        loads = {"first": given.base_url, "again": given.base_url}
    runs = [measure(name, url, given) for name, url in loads.items()]
    print(f"\n{table(runs)}\n", *filter(None, map(others, runs)), sep="\n")
    plot(runs, given.plot)
    print(f"seed {given.seed}; plot in {given.plot}")
    return 1 if any(run.bench["failed"] for run in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
