"""Every figure of the bench: what it is called, its unit, and what we want it to be."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

Samples = dict[str, list[float]]
"""Figure key -> measured values, in the figure's unit."""

MEMCPY = "memcpy"


@dataclass(frozen=True)
class Target:
    """Bounds on our median; those that are None do not count."""

    times_peer: float | None = None
    at_most: float | None = None
    at_least_memcpy: bool = False

    def text(self) -> str:
        parts = []
        if self.times_peer is not None:
            parts.append(f">= {self.times_peer:g}x peer")
        if self.at_least_memcpy:
            parts.append(">= memcpy")
        if self.at_most is not None:
            parts.append(f"<= {self.at_most:g}")
        return ", ".join(parts)

    def reached(self, ours: float, peer: float | None, memcpy: float | None) -> bool | None:
        """None when a value to compare with was not measured."""
        checks: list[bool | None] = []
        if self.times_peer is not None:
            checks.append(None if peer is None else ours >= self.times_peer * peer)
        if self.at_least_memcpy:
            checks.append(None if memcpy is None else ours >= memcpy)
        if self.at_most is not None:
            checks.append(ours <= self.at_most)
        if False in checks:
            return False
        return None if None in checks or not checks else True


@dataclass(frozen=True)
class Figure:
    key: str
    title: str
    unit: str
    case: str
    target: Target = Target()
    higher_is_better: bool = False


def _rate(key: str, title: str, case: str, target: Target = Target()) -> Figure:
    return Figure(key, title, "GB/s", case, target, higher_is_better=True)


FIGURES = [
    _rate(
        "store", "store, handle mode, 256 MiB", "handle", Target(times_peer=5, at_least_memcpy=True)
    ),
    _rate(
        "retrieve",
        "retrieve, handle mode, 256 MiB",
        "handle",
        Target(times_peer=3, at_least_memcpy=True),
    ),
    _rate(MEMCPY, "memcpy of one thread, 256 MiB, same moments", "handle"),
    _rate("engine_store", "engine-driven store, 256 MiB", "engine"),
    _rate("engine_retrieve", "engine-driven retrieve, 256 MiB", "engine"),
    Figure(
        "prepare_commit_store", "prepare + commit of a store", "ms", "engine", Target(at_most=1)
    ),
    Figure("prepare_store", "  prepare_store", "ms", "engine"),
    Figure("commit_store", "  commit_store", "ms", "engine"),
    Figure(
        "prepare_commit_retrieve",
        "prepare + commit of a retrieve",
        "ms",
        "engine",
        Target(at_most=1),
    ),
    Figure("prepare_retrieve", "  prepare_retrieve", "ms", "engine"),
    Figure("commit_retrieve", "  commit_retrieve", "ms", "engine"),
    _rate("small_1", "4 MiB stores and retrieves, one client", "small", Target(times_peer=3)),
    _rate("small_store_1", "  stores", "small"),
    _rate("small_retrieve_1", "  retrieves", "small"),
    _rate(
        "small_4", "4 MiB stores and retrieves, four clients in all", "small4", Target(times_peer=3)
    ),
    _rate("small_store_4", "  stores", "small4"),
    _rate("small_retrieve_4", "  retrieves", "small4"),
    Figure("lookup_2k", "lookup hit, 2k tokens, new tail", "ms", "lookup", Target(at_most=0.8)),
    Figure("lookup_32k", "lookup hit, 32k tokens, new tail", "ms", "lookup", Target(at_most=2.5)),
    Figure("lookup_128k", "lookup hit, 128k tokens, new tail", "ms", "lookup", Target(at_most=7)),
    Figure("ping", "ping, for scale", "ms", "lookup"),
    Figure("lookup_4", "lookup hit, 2k tokens, four clients", "ms", "lookup4", Target(at_most=2)),
    Figure("ready", "ready after start", "s", "ready", Target(at_most=1.5)),
    Figure("ready_rpc", "  first get_chunk_size answered", "s", "ready"),
    Figure("ready_http", "  /healthcheck is 200", "s", "ready"),
    Figure("idle_mb", "idle: memory beside the L1", "MB", "idle", Target(at_most=100)),
    Figure("idle_cpu", "idle: CPU, percent of a core", "%", "idle", Target(at_most=0.1)),
]


@dataclass(frozen=True)
class Row:
    """One figure's medians; None where a server was not measured or has no such value."""

    figure: Figure
    peer: float | None
    ours: float | None
    reached: bool | None

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the peer (> 1 is better)."""
        if not self.peer or not self.ours:
            return None
        return self.ours / self.peer if self.figure.higher_is_better else self.peer / self.ours


def rows(peer: Samples, ours: Samples) -> list[Row]:
    """The figures measured on either server, in the order of FIGURES."""
    memcpy = ours.get(MEMCPY)
    result = []
    for figure in FIGURES:
        theirs, own = peer.get(figure.key), ours.get(figure.key)
        if not theirs and not own:
            continue
        peer_median = median(theirs) if theirs else None
        our_median = median(own) if own else None
        reached = None
        if our_median is not None:
            reached = figure.target.reached(
                our_median, peer_median, median(memcpy) if memcpy else None
            )
        result.append(Row(figure, peer_median, our_median, reached))
    return result
