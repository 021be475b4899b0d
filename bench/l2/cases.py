"""All figures of L2 of one server."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bench.cases import Pools
from bench.figures import Samples
from bench.l2.effect import effect
from bench.l2.restart import restart
from bench.l2.setting import Plan
from bench.l2.transfers import transfers


def measure(name: str, plan: Plan, pools: Pools, logs: Path) -> Samples:
    samples: Samples = {}
    for kind in ("fs", "direct", "nixl"):
        if kind == "nixl" and importlib.util.find_spec("nixl") is None:
            continue
        if kind == "direct" and name == "ours":
            continue  # that is what "fs" is
        for key, values in transfers(name, kind, plan, pools, logs).items():
            samples.setdefault(key, []).extend(values)
    if name == "ours":
        samples |= {k.replace("_fs_", "_direct_"): v for k, v in samples.items() if "_fs_" in k}
    return samples | restart(name, plan, pools, logs) | effect(name, plan, pools, logs)
