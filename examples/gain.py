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
from pathlib import Path

from examples.counters import sidecar_counts, vllm_counts
from examples.gain_report import Run, others, plot, table
from examples.usage import Parser


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
    if not bench["completed"]:
        sys.exit(f"{name}: no request succeeded: {bench['errors'][0]}")
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


def parse() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_sidecar_url()
    add = parser.add_argument
    add("--base-url", default="http://127.0.0.1:8000", help="a vLLM with the sidecar (%(default)s)")
    add("--baseline-url", help="a vLLM without it")
    parser.add_count("--prefixes", 8, "different ones")
    parser.add_count("--prompts", 4, "that begin with each")
    parser.add_count("--prefix-tokens", 2048, "of each")
    parser.add_count("--suffix-tokens", 256, "behind it")
    parser.add_count("--output-tokens", 16, "of each answer")
    parser.add_count("--concurrency", 4, "requests at once")
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
