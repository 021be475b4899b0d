"""What transfers and inference on one GPU do to each other.

They are processes of their own, as in a deployment: the GPU takes their kernels in turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bench.common import Span
from bench.gpu import transfers
from bench.gpu.background import Background, Work
from bench.gpu.findings import Finding
from bench.gpu.inference import decode, prefill
from bench.gpu.loads import moved, traffic
from bench.gpu.plain import Rates
from bench.gpu.shapes import RUNS, Shape

# A rank of eight of Llama-3.1-8B with blocks of 16 tokens: 32k tokens are runs of 4 KiB.
TP8 = Shape("Llama-3.1-8B TP8", 4, 32, 1, request_bytes=512 << 20)
_SPEEDS = {"slow": 2.5 * (1 << 30), "full": None}
_REQUEST_BYTES = 32 << 20  # small, so that a given speed is an even one
_SHAPES = {
    name: replace(shape, request_bytes=_REQUEST_BYTES)
    for shape in RUNS
    for name, kib in (("short", 4), ("long", 64))
    if shape.run_kib == kib
}


@dataclass(frozen=True)
class Setting:
    """What is measured how: a small one needs no GPU."""

    seconds: float = 6.0
    settle: float = 5.0  # until the arena that transfers use is pinned
    device: str = "cuda"
    inference: tuple[int, int] = (32, 4096)  # layers and width of decode
    prompts: tuple[int, int] = (8, 8192)  # products and width of prefill
    shapes: tuple[tuple[str, Shape], ...] = tuple(_SHAPES.items())
    tp8: Shape = TP8


def measure(url: str, setting: Setting = Setting()) -> Iterator[Finding]:
    """Loads and stores beside prefill; decode beside loads and stores."""
    yield from _beside(prefill, url, setting)
    with Background(decode, setting.device, *setting.inference) as inference:
        for name, shape in setting.shapes:
            for speed, rate in _SPEEDS.items():
                key = f"{name}_{speed}"
                yield from _cost(key, inference, (url, shape, rate, setting.device), setting)


def _beside(load: Work, url: str, setting: Setting) -> Iterator[Finding]:
    """GB/s of short runs on an idle GPU and on one that is busy."""

    def rates() -> Rates:
        return transfers.rates(url, setting.tp8, 1, repeats=5, device=setting.device)

    idle = rates()
    with Background(load, setting.device, *setting.prompts):
        busy = rates()
    for phase in ("load", "store"):
        yield Finding(f"tp8_{phase}_idle", idle[phase])
        yield Finding(f"tp8_{phase}_busy", busy[phase])


def _cost(
    key: str,
    inference: Background,
    arguments: tuple[str, Shape, float | None, str],
    setting: Setting,
) -> Iterator[Finding]:
    """How much longer a step of decode takes, in percent; alone before and after."""
    _, shape, rate, _ = arguments
    alone = inference.during(setting.seconds)
    with Background(traffic, *arguments) as background:
        background.during(setting.settle)
        beside = inference.during(setting.seconds)
        steps = background.steps()
    alone += inference.during(setting.seconds)
    speed = len(steps) * moved(shape, rate) / setting.seconds / 1e9
    for percent in (50, 99):
        before, now = percentile(alone, percent), percentile(beside, percent)
        note = f"{1e3 * before:.2f} ms, {1e3 * now:.2f} beside {speed:.1f} GB/s"
        yield Finding(f"{key}_p{percent}", 100 * (now / before - 1), note)


def percentile(spans: Sequence[Span], percent: float) -> float:
    """Of the seconds that they took."""
    return float(np.percentile([span.end - span.start for span in spans], percent))
