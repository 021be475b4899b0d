"""The same load with KV events of what is below the GPU, and with those of the GPU alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.common import BenchError
from bench.routing.load import USERS, Turn, converse
from bench.routing.nodes import Plan, running
from launch.tiny_model import make_model

# Of a worker's GPU: one prompt of the greatest length.
GPU_BLOCKS = 34
L1_GB = 2
AT_ONCE = (1, USERS)
# A prompt of 3,000 tokens takes one core of a server some 2.5 s.
HIDDEN, LAYERS = 512, 8


@dataclass(frozen=True)
class Run:
    """One load on one side. `seen` are the requests of which the router knew something in host
    memory, of `routed` in all."""

    announced: bool
    at_once: int
    turns: tuple[Turn, ...]
    seen: int
    routed: int

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def measure(directory: Path) -> Iterator[Run]:
    """Each side's programs are started once. Raises BenchError where a side is not what it is
    called."""
    model = make_model(directory / "model", hidden=HIDDEN, layers=LAYERS)
    for announced in (False, True):
        plan = Plan(model=model, gpu_blocks=GPU_BLOCKS, l1_gb=L1_GB, announced=announced)
        with running(plan, directory / ("seen" if announced else "unseen")) as cluster:
            routed = 0
            for at_once in AT_ONCE:
                turns = tuple(converse(cluster, at_once))
                made = cluster.decisions()[routed:]
                routed += len(made)
                seen = sum(decision.host_blocks > 0 for decision in made)
                if bool(seen) != announced:
                    raise BenchError(f"the router saw host memory {seen} times of {len(made)}")
                yield Run(announced, at_once, turns, seen, len(made))
