"""`make demo`: see what the sidecar is for, on a machine without a GPU."""

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from connectors import roles
from connectors.lmcache_mp import CacheServer
from examples.counters import wait_stored
from launch.tiny_model import make_model
from sidecar import shared_libraries

from . import report
from .client import complete, request_body
from .engine import Engine, start_engine
from .measure import MAX_TOKENS, Measured, measure
from .process import ProcessFailed
from .progress import Progress
from .sidecar import CHUNK_SIZE, Sidecar, start_sidecar

PROMPT_TOKENS = 3500
PROMPT = "".join(f"The square of {i} is {i * i}. " for i in range(200))[:PROMPT_TOKENS]
# Too short to be stored; the first request to an engine pays for what it sets up lazily.
WARM_UP = "Hello."


class Demo:
    """The steps in the order in which they happen; `stack` stops what they started."""

    def __init__(self, run: Path, stack: ExitStack) -> None:
        self._run = run
        self._stack = stack
        self._progress = Progress()
        self.sidecar: Sidecar
        self.engine: Engine

    def play(self) -> tuple[Measured, Measured]:
        """Serve the prompt by a worker that computes it and by one that never did."""
        say = self._progress.line
        say("model: 12 layers, random weights, 170 MB")
        make_model(self._run / "model", hidden=768, layers=12)
        say("sidecar: starting")
        self.sidecar = start_sidecar(self._run / "sidecar.log")
        self._stack.callback(self.sidecar.process.stop)
        self._start_engine("worker 1")
        cold = self._send("cold")
        chunks = PROMPT_TOKENS // CHUNK_SIZE
        wait_stored(self.sidecar.url, chunks)
        say(f"store: {chunks} chunks are in the sidecar")
        say("worker 1: stopping; what it computed is gone from vLLM")
        self.engine.process.stop()
        self._start_engine("worker 2")
        warm = self._send("warm")
        self._progress.end()
        return cold, warm

    def _start_engine(self, name: str) -> None:
        self._progress.line(f"{name}: vLLM is loading (30 to 60 s)")
        self.engine = start_engine(
            self._run / "model",
            roles.aggregated(CacheServer(port=self.sidecar.port)),
            self._run / f"{name.replace(' ', '-')}.log",
            tick=self._progress.dot,
        )
        self._stack.callback(self.engine.process.stop)
        complete(self.engine.url, WARM_UP, MAX_TOKENS)

    def _send(self, name: str) -> Measured:
        self._progress.line(f"{name}: sending a prompt of {PROMPT_TOKENS:,} tokens")
        return measure(self.engine, self.sidecar, PROMPT)


def run_demo(run: Path, keep: bool) -> int:
    """Play it, print the table; 0 only if the warm request was served from the sidecar."""
    with ExitStack() as stack:
        demo = Demo(run, stack)
        cold, warm = demo.play()
        print(f"\n{report.table(cold, warm)}\n{report.memory(demo.sidecar)}")
        if keep:
            request = run / "request.json"
            request.write_bytes(request_body(PROMPT, MAX_TOKENS, stream=False))
            print(report.how_to_try(demo.engine, demo.sidecar, request))
            stack.pop_all()
    failures = list(problems(cold, warm))
    for failure in failures:
        print(f"\nFAILED: {failure}")
    return 1 if failures else 0


def problems(cold: Measured, warm: Measured) -> Iterator[str]:
    if not warm.from_sidecar:
        yield "the warm request was not served from the sidecar"
    if warm.completion.token_ids != cold.completion.token_ids:
        yield "the outputs differ"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave it running (make demo KEEP=1)")
    keep = parser.parse_args().keep
    if lack := shared_libraries.lack("vllm"):
        sys.exit(lack)
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, _: sys.exit(128 + number))
    run = Path(tempfile.mkdtemp(prefix="kv-sidecar-demo-"))
    print(f"kv-sidecar demo: one to three minutes; logs in {run}\n")
    code = 1
    try:
        code = run_demo(run, keep)
    except KeyboardInterrupt:
        print("\ninterrupted; everything it started is stopped")
        code = 130
    except (ProcessFailed, TimeoutError, OSError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
    finally:
        tidy(run, code, keep)
    return code


def tidy(run: Path, code: int, keep: bool) -> None:
    """Leave the logs of a failure, and everything of what still runs."""
    if code == 1:
        shutil.rmtree(run / "model", ignore_errors=True)
        print(f"The logs are in {run}", file=sys.stderr)
    elif code != 0 or not keep:
        shutil.rmtree(run, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
