"""Runs a step, and says how it ended, whatever it does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.gpu.quick.report import MISSED
from tests.gpu.quick.steps import Step

REPO = Path(__file__).resolve().parents[3]
HUNG = "HUNG"
BAD = ("WRONG BYTES", HUNG, "CRASHED")
_HELP = "scripts/gpu_wheels.py"
_FIND = """
import importlib.util, sys
for name in sys.argv[1:]:
    try:
        found = importlib.util.find_spec(name)
    except ImportError:
        found = None
    if found is None:
        print(name)
"""


@dataclass
class Outcome:
    """How a step ended: ok, MISSED, skipped or one of BAD. `parts` is what it found."""

    step: int
    what: str
    verdict: str
    why: str = ""
    seconds: float = 0.0
    parts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return f"{self.verdict}: {self.why}" if self.why else self.verdict

    def as_json(self) -> str:
        return json.dumps(asdict(self) | {"seconds": round(self.seconds, 1)})


def run(step: Step, folder: Path, limit: float, environment: dict[str, str]) -> Outcome:
    """Run it for at most `limit` seconds. Its findings and its log lie in `folder` then."""
    lacks = missing(step.needs, environment)
    if lacks:
        return Outcome(step.number, step.what, "skipped", f"no {' '.join(lacks)} ({_HELP})")
    findings, log = folder / f"step-{step.number}.jsonl", folder / f"step-{step.number}.log"
    start = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.quick.one", step.module, str(findings)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            cwd=REPO, env=environment | {"GPU_QUICK_STEP": str(step.number)},
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):  # and whatever it has started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    outcome = _outcome(step, findings, code, limit)
    outcome.seconds = time.monotonic() - start
    return outcome


def missing(needs: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Those of these modules that a step could not import."""
    if not needs:
        return []
    command = [sys.executable, "-c", _FIND, *needs]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return result.stdout.split()


def _outcome(step: Step, findings: Path, code: int | None, limit: float) -> Outcome:
    parts = _lines(findings)
    end = parts.pop() if parts and "end" in parts[-1] else None
    outcome = Outcome(step.number, step.what, "ok", parts=parts)
    after = f", after: {parts[-1]['what']}" if parts else ""
    if end is not None:
        outcome.verdict, outcome.why = end["end"], end["why"]
    elif code is None:
        outcome.verdict, outcome.why = HUNG, f"no end in {limit:.0f} s{after}"
    else:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        outcome.verdict, outcome.why = "CRASHED", f"{how}{after}"
    if outcome.verdict == "ok":
        _judge(outcome)
    return outcome


def _judge(outcome: Outcome) -> None:
    """Of a step that has come to its end."""
    missed = [part["what"] for part in outcome.parts if part["verdict"] == MISSED]
    skipped = [part["what"] for part in outcome.parts if part["verdict"] == "skipped"]
    if missed:
        outcome.verdict, outcome.why = MISSED, "; ".join(missed)
    elif skipped and len(skipped) == len(outcome.parts):
        outcome.verdict, outcome.why = "skipped", outcome.parts[0]["note"]
    elif skipped:
        outcome.why = f"skipped: {'; '.join(skipped)}"


def _lines(path: Path) -> list[dict[str, Any]]:
    """What has been written whole: the last line may be cut off."""
    found = []
    with suppress(FileNotFoundError, json.JSONDecodeError):
        for line in path.read_text().splitlines():
            found.append(json.loads(line))
    return found
