"""`python -m tests.e2e.native_campaign`: vLLM's own connector over the sidecar, case by case.

Each case of a model: cold, the worker restarted, warm, with prompts of many lengths and prefixes
of them; every answer must be the computed one. (MLA: that of the engine before over the same
prefix. vLLM's CPU build computes a prompt otherwise over a prefix than as a whole there, with any
connector, and turns its own prefix cache off.) `faults`: two engines under load share a sidecar
that is killed, stopped and started again with another size; no request takes a second longer than
its slowest recompute while the same happens to a sidecar that nobody uses. `stacks`: Dynamo's
workers of launch/, aggregated and disaggregated.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from examples.demo.engine import Engine
from launch.tiny_model import make_model
from tests.support.native_vllm import (
    BLOCK,
    Answer,
    ask,
    loaded,
    native_engine,
    no_lmcache,
    nothing_is_held,
    objects,
)
from tests.support.server import REPO, Server, wait_until
from tests.support.tiny_models import (
    WINDOW,
    make_hybrid_model,
    make_latent_model,
    make_recurrent_model,
)

from .conftest import prompt
from .test_stacks import PROMPTS, Running, ask_all
from .test_stacks import Answer as StackAnswer
from .test_stacks import ask as ask_stack
from .test_stacks import loaded as loaded_by

HYBRID = ("--no-disable-hybrid-kv-cache-manager", "--max-num-batched-tokens", "512")
# States are kept where vLLM's own prefix cache is on.
RECURRENT = ("--no-disable-hybrid-kv-cache-manager", "--enable-prefix-caching")
SETTLE_SECONDS = 120.0
# What a fault may add to a request, beside its recompute.
MOST_SECONDS_MORE = 1.0
START_SECONDS = 600.0  # beside two engines at work on the same cores
MORE = ("faults", "stacks")


@dataclass(frozen=True)
class Case:
    """A model, vLLM's flags, and how many of its blocks are a chunk.

    `exact`: what is computed over a prefix is what is computed as a whole. `environment`: whose
    vLLM, below `.venv`.
    """

    make: Callable[[Path], Path]
    flags: tuple[str, ...] = ()
    blocks_per_chunk: int = 1
    lengths: tuple[int, ...] = (100, 700, 1500, 3500)
    exact: bool = True
    environment: str = ""
    cores: str | None = None


def _plain(folder: Path) -> Path:
    return make_model(folder, hidden=256, layers=4)


CASES = {
    "plain": Case(_plain),
    "own prefix cache": Case(_plain, ("--enable-prefix-caching",), 2),
    "small GPU cache": Case(_plain, ("--num-gpu-blocks-override", "40"), 2),
    "sliding window": Case(make_hybrid_model, HYBRID, 1, (WINDOW - 84, 4 * WINDOW + 84, 3500)),
    "sliding window, chunks of 2": Case(make_hybrid_model, HYBRID, 2, (WINDOW - 84, 1620, 3500)),
    "MLA": Case(make_latent_model, exact=False),
    "recurrent": Case(make_recurrent_model, RECURRENT),
    "TP 2": Case(_plain, ("--tensor-parallel-size", "2"), 2, cores="0|1"),
    "Dynamo's vLLM": Case(_plain, (), 2, environment="dynamo"),
}


@dataclass
class Findings:
    """What went wrong, as lines."""

    lines: list[str] = field(default_factory=list)

    def check(self, right: bool, what: str) -> None:
        if not right:
            print("  WRONG:", what, flush=True)
            self.lines.append(what)


def run_case(name: str, case: Case, folder: Path, findings: Findings) -> None:
    model = case.make(folder / "model")
    texts = [prompt(f"{name} {length}", length) for length in case.lengths]
    prefixes = [texts[-1][: n * len(texts[-1]) // 4] for n in (1, 2, 3)]
    server = Server(folder, l1_size_gb=2)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        with engine_of(server, model, folder / "cold.log", case) as engine:
            cold = [ask(engine, text) for text in texts]
            settle(server)
            if not case.exact:
                cold = [ask(engine, text) for text in texts]
            found = [ask(engine, prefix) for prefix in prefixes]
        with engine_of(server, model, folder / "warm.log", case) as engine:
            for text, computed in zip(texts, cold, strict=True):
                before = loaded(engine)
                answer = ask(engine, text)
                hits = loaded(engine) - before
                print(f"  {name}: {len(text)} tokens, {hits} loaded", flush=True)
                findings.check(answer == computed, f"{name}: {len(text)} tokens, {hits} loaded")
                long = len(text) > 128 * case.blocks_per_chunk + 1
                findings.check(hits > 0 or not long, f"{name}: {len(text)} tokens, no hit")
            wait_until(lambda: nothing_is_held(server), "all pins are given back", 60)
            if case.exact:
                clear(server)
            for prefix, over in zip(prefixes, found, strict=True):
                findings.check(ask(engine, prefix) == over, f"{name}: prefix of {len(prefix)}")


@contextmanager
def engine_of(
    server: Server, model: Path, log: Path, case: Case, cores: str | None = None
) -> Iterator[Engine]:
    with ExitStack() as stack:
        python = sys.executable
        if case.environment:
            python = str(REPO / ".venv" / case.environment / "bin" / "python")
        with patch.object(sys, "executable", python):
            engine = stack.enter_context(
                native_engine(
                    server, model, log, *case.flags,
                    cores=cores or case.cores, blocks_per_chunk=case.blocks_per_chunk,
                )
            )  # fmt: skip
        yield engine


def settle(server: Server) -> None:
    """Until no more is stored."""
    before = -1
    while (now := objects(server)) != before:
        before = now
        time.sleep(1.0)


def clear(server: Server) -> None:
    server.request("/cache/clear", {"tier": "l1", "force": True})


def run_faults(minutes: float, count: int, folder: Path, seed: int, findings: Findings) -> None:
    """`count` kills, stops and restarts at random moments; no request fails, waits or is wrong."""
    chance, case = random.Random(seed), Case(_plain, (), 2)
    model = case.make(folder / "model")
    texts = [prompt(f"Text {n}", 400 + 300 * n) for n in range(8)]
    server = Server(folder, l1_size_gb=0.25)
    with ExitStack() as stack:
        stack.callback(server.stop)
        server.start()
        engines = [
            stack.enter_context(engine_of(server, model, folder / f"{n}.log", case, str(n)))
            for n in (0, 1)
        ]
        expected = {text: ask(engines[0], text) for text in texts}
        clear(server)
        server.stop()
        recomputed = _Load(engines, texts, expected, findings)
        # The same happens to another sidecar: starting one takes its share of the cores, too.
        other = Server(folder, l1_size_gb=0.25)
        stack.callback(other.stop)
        other.start(START_SECONDS)
        other_harm = _under_load(recomputed, other, random.Random(seed), minutes / 3, count)
        other.stop()
        server.start(START_SECONDS)
        load = _Load(engines, texts, expected, findings)
        harm = _under_load(load, server, chance, minutes, count)
        before = sum(map(loaded, engines))
        wait_until(lambda: _hit_again(engines, texts, before), "hits in the end", SETTLE_SECONDS)
        wait_until(lambda: nothing_is_held(server), "all pins are given back", 60)
        print(f"  faults: {dict(Counter(each.kind for each in harm))}")
        _report(load, harm, recomputed, other_harm, findings)
        for number, engine in enumerate(engines):
            print(f"  engine {number}: {loaded(engine)} tokens loaded")


def _under_load(
    load: _Load, server: Server, chance: random.Random, minutes: float, count: int
) -> list[_Harm]:
    """`count` faults of `server` while engines are asked; fewer if the time is over before."""
    ends, harm = time.monotonic() + 60 * minutes, list[_Harm]()
    with load:
        while len(harm) < count and time.monotonic() < ends:
            time.sleep(chance.uniform(0.5, 4.0))
            begun = time.monotonic()
            harm.append(_Harm(_harm(server, chance), begun, time.monotonic()))
            print(f"  {len(harm)} faults, {len(load.took)} requests", flush=True)
    return harm


def _report(
    load: _Load, harm: list[_Harm], recomputed: _Load, other_harm: list[_Harm], findings: Findings
) -> None:
    """How long requests took, against those of the same prompts that nothing was cached for."""
    slowest = _slowest(recomputed.took)
    kinds = dict(Counter(each.kind for each in other_harm))
    print(f"  {len(load.took)} requests, and {len(recomputed.took)} without the sidecar ({kinds})")
    for request in load.took:
        more = request.seconds - slowest[request.text]
        during = [each.kind for each in harm if each.overlaps(request)]
        said = f"{request.seconds:.2f} s, {more:+.2f} s to its slowest recompute: {during}"
        if more > 0.5:
            print(f"  {said}", flush=True)
        findings.check(more <= MOST_SECONDS_MORE, said)


def _slowest(took: list[_Request]) -> dict[str, float]:
    """By prompt; of one that was never asked for, that of any."""
    most = max((request.seconds for request in took), default=0.0)
    slowest = defaultdict[str, float](lambda: most)
    for request in took:
        slowest[request.text] = max(slowest.get(request.text, 0.0), request.seconds)
    return slowest


def run_stacks(findings: Findings) -> None:
    """One engine's answers by every stack, and once more from the cache."""
    computed = _ask_stack("agg", "worker-0", None, findings)
    _ask_stack("disagg", "prefill-0", computed, findings)


def _ask_stack(
    topology: str, worker: str, computed: list[StackAnswer] | None, findings: Findings
) -> list[StackAnswer]:
    """All prompts twice; the first answers. `worker` is whom the sidecar spares work."""
    running = Running(topology, "--client", "native")
    stored = sum(len(text) // BLOCK for text in PROMPTS)
    try:
        first = [ask_stack(running.url, text) for text in PROMPTS]
        wait_until(lambda: running.sidecar_counter("l1_write_chunks") >= stored, "stored", 120)
        before = loaded_by(running.worker(worker))
        again = ask_all(running.url, PROMPTS)
        hits = loaded_by(running.worker(worker)) - before
    finally:
        running.close()
    print(f"  {topology}: {hits} of {sum(map(len, PROMPTS))} tokens loaded", flush=True)
    findings.check(hits >= stored * BLOCK, f"{topology}: only {hits} tokens are loaded")
    for text, *answers, expected in zip(PROMPTS, first, again, computed or first, strict=True):
        right = all(answer.same_as(expected) for answer in answers)
        findings.check(right, f"{topology}: a wrong answer to {text[:20]}")
    return first


def _harm(server: Server, chance: random.Random) -> str:
    """One kind of fault, by chance, and its end; which it was."""
    assert server.process is not None
    kind = chance.choice(["kill", "stop", "restart"])
    match kind:
        case "kill":
            server.kill()
            time.sleep(chance.uniform(0.0, 3.0))
            server.start(START_SECONDS)
        case "stop":
            server.process.send_signal(signal.SIGSTOP)
            time.sleep(chance.choice([0.2, 1.0, 5.0, 60.0]))
            server.process.send_signal(signal.SIGCONT)
        case _:
            server.stop()
            at = server._flags.index("--l1-size-gb") + 1
            server._flags[at] = chance.choice(["0.1", "0.25", "0.5"])
            server.start(START_SECONDS)
    return kind


def _hit_again(engines: list[Engine], texts: list[str], before: int) -> bool:
    for engine, text in itertools.product(engines, texts):
        ask(engine, text)
    return sum(map(loaded, engines)) > before


@dataclass(frozen=True)
class _Request:
    text: str
    begun: float
    seconds: float


@dataclass(frozen=True)
class _Harm:
    """One fault, from its beginning until a sidecar serves again."""

    kind: str
    begun: float
    ended: float

    def overlaps(self, request: _Request) -> bool:
        return request.begun < self.ended and self.begun < request.begun + request.seconds


class _Load:
    """Two clients an engine that ask without end, within a `with` block."""

    def __init__(
        self,
        engines: list[Engine],
        texts: list[str],
        expected: dict[str, Answer],
        findings: Findings,
    ) -> None:
        self.took: list[_Request] = []
        self._texts, self._expected, self._findings = texts, expected, findings
        self._stop = threading.Event()
        clients = [engine for engine in engines for _ in range(2)]
        self._threads = [threading.Thread(target=self._client, args=(e,)) for e in clients]

    def _client(self, engine: Engine) -> None:
        # By chance, so that each prompt meets each other one in the other client of the engine.
        chance = random.Random(threading.get_ident())
        while not self._stop.is_set():
            text = chance.choice(self._texts)
            begun = time.monotonic()
            try:
                answer = ask(engine, text)
            except Exception as error:
                self._findings.check(False, f"a request failed: {error!r}")
                return
            self.took.append(_Request(text, begun, time.monotonic() - begun))
            right = answer == self._expected[text]
            self._findings.check(right, f"a wrong answer to {text[:6]}")

    def __enter__(self) -> _Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.e2e.native_campaign", description=__doc__
    )
    parser.add_argument("--only", action="append", choices=[*CASES, *MORE], help="this case")
    parser.add_argument("--faults", type=int, default=50, help="how many, at the most")
    parser.add_argument("--minutes", type=float, default=40.0, help="of faults, at the most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    findings = Findings()
    for name in options.only or [*CASES, *MORE]:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as directory, no_lmcache(Path(directory)):
            if name == "stacks":
                run_stacks(findings)
            elif name == "faults":
                run_faults(options.minutes, options.faults, Path(directory), options.seed, findings)
            else:
                run_case(name, CASES[name], Path(directory), findings)
    print(f"{len(findings.lines)} findings")
    return 1 if findings.lines else 0


if __name__ == "__main__":
    sys.exit(main())
