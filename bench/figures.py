"""Every figure of the bench: what it is called, its unit, and what we want it to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

Samples = dict[str, list[float]]
"""Figure key -> measured values, in the figure's unit."""

MEMCPY = "memcpy"
# Tokens of a chunk at the native door: vLLM's usual block, which is the default, and lmcache's.
NATIVE_CHUNKS = (16, 256)
FIO_READ, FIO_WRITE = "fio_read", "fio_write"
_REFERENCES = {MEMCPY: "memcpy", FIO_READ: "fio", FIO_WRITE: "fio"}


@dataclass(frozen=True)
class Target:
    """Bounds on our median; those that are None do not count.

    Ours must be at least `times_peer` times the peer's, or at most `of_peer` times it.
    `reference` is a figure of our own: ours must be `times_reference` times that.
    """

    times_peer: float | None = None
    of_peer: float | None = None
    at_most: float | None = None
    at_least: float | None = None
    reference: str | None = None
    times_reference: float = 1.0

    def text(self) -> str:
        parts = []
        if self.times_peer is not None:
            parts.append(f">= {self.times_peer:g}x peer")
        if self.of_peer is not None:
            parts.append(f"<= {self.of_peer:.2g}x peer")
        if self.reference is not None:
            times = "" if self.times_reference == 1 else f"{self.times_reference:g}x "
            parts.append(f">= {times}{_REFERENCES[self.reference]}")
        if self.at_most is not None:
            parts.append(f"<= {self.at_most:g}")
        if self.at_least is not None:
            parts.append(f">= {self.at_least:g}")
        return ", ".join(parts)

    def reached(self, ours: float, peer: float | None, reference: float | None) -> bool | None:
        """None when a value to compare with was not measured."""
        checks: list[bool | None] = []
        if self.times_peer is not None:
            checks.append(None if peer is None else ours >= self.times_peer * peer)
        if self.of_peer is not None:
            checks.append(None if peer is None else ours <= self.of_peer * peer)
        if self.reference is not None:
            checks.append(None if reference is None else ours >= self.times_reference * reference)
        if self.at_most is not None:
            checks.append(ours <= self.at_most)
        if self.at_least is not None:
            checks.append(ours >= self.at_least)
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
    _rate("store", "store, handle mode, 256 MiB", "handle", Target(times_peer=5, reference=MEMCPY)),
    _rate(
        "retrieve",
        "retrieve, handle mode, 256 MiB",
        "handle",
        Target(times_peer=3, reference=MEMCPY),
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
    Figure("new_lookup_2k", "lookup miss, 2k tokens, a new prompt", "ms", "lookup"),
    Figure("new_lookup_32k", "lookup miss, 32k tokens, a new prompt", "ms", "lookup"),
    Figure("new_lookup_128k", "lookup miss, 128k tokens, a new prompt", "ms", "lookup"),
    Figure("ping", "ping, for scale", "ms", "lookup"),
    _rate("native_store", "native door: store, 256 MiB", "native", Target(reference=MEMCPY)),
    _rate("native_load", "native door: load, 256 MiB", "native", Target(reference=MEMCPY)),
    Figure(
        "native_step",
        "native door: what an idle engine's step costs",
        "us",
        "native",
        Target(at_most=50),
    ),
    Figure("lookup_4", "lookup hit, 2k tokens, four clients", "ms", "lookup4", Target(at_most=2)),
    Figure(
        "ttft_cold_lmcache", "time to first token, 3,900 tokens, new, --client lmcache", "s", "ttft"
    ),
    Figure("ttft_lmcache", "  the same prompts again, from L1", "s", "ttft"),
    Figure(
        "ttft_cold_native", "time to first token, 3,900 tokens, new, --client native", "s", "ttft"
    ),
    Figure("ttft_native", "  the same prompts again, from L1", "s", "ttft"),
    Figure(
        "replay_hits",
        "1,200 requests of a conversation trace, L1 of a quarter of them: tokens hit",
        "%",
        "replay",
        Target(times_peer=1),
        higher_is_better=True,
    ),
    Figure("replay_rate", "  requests a second", "1/s", "replay", higher_is_better=True),
    Figure("ready", "ready after start", "s", "ready", Target(at_most=1.5)),
    Figure("ready_rpc", "  first get_chunk_size answered", "s", "ready"),
    Figure("ready_http", "  /healthcheck is 200", "s", "ready"),
    Figure("idle_mb", "idle: memory beside the L1", "MB", "idle", Target(at_most=100)),
    Figure("idle_cpu", "idle: CPU, percent of a core", "%", "idle", Target(at_most=0.1)),
]


def _crowd16() -> list[Figure]:
    """Of sixteen workers that store, load, look up and ping: as fast as they can, and at a pace."""
    return [
        Figure(
            "crowd16_rate",
            "16 workers, 4 MiB stores and loads, lookups of 2k tokens: operations",
            "1/s",
            "crowd16",
            Target(times_peer=1),
            higher_is_better=True,
        ),
        _rate("crowd16_moved", "  bytes of stores and loads", "crowd16"),
        *_waits("crowd16"),
        Figure(
            "paced16_rate",
            "16 workers, as many operations from both servers",
            "1/s",
            "crowd16",
            higher_is_better=True,
        ),
        _rate("paced16_moved", "  bytes of stores and loads", "crowd16"),
        *_waits("paced16"),
    ]


def _waits(key: str) -> Iterator[Figure]:
    for name in ("store", "load", "lookup", "ping"):
        target = Target(of_peer=1 / 3) if name == "ping" else Target()
        yield Figure(f"{key}_{name}_p50", f"  {name}, p50", "ms", "crowd16")
        yield Figure(f"{key}_{name}_p99", f"  {name}, p99", "ms", "crowd16", target)
        yield Figure(f"{key}_{name}_max", f"  {name}, the longest", "ms", "crowd16")


def _native_lookups(chunk_tokens: int) -> Iterator[Figure]:
    """Of the connector's manager, with objects of so many tokens."""
    key = f"native{chunk_tokens}"
    for kind, title in (("new_lookup", "miss"), ("lookup", "hit, new tail")):
        for tokens in ("2k", "32k", "128k"):
            figure = f"{key}_{kind}_{tokens}"
            what = f"native door: lookup {title}, {tokens} tokens, chunks of {chunk_tokens}"
            bounds = (2, 0.5) if (kind, tokens) == ("new_lookup", "128k") else (None, None)
            for suffix, name, bound in (
                ("", what, None),
                ("_engine", "  CPU of the scheduler", bounds[0]),
                ("_server", "  CPU of the server", bounds[1]),
            ):
                yield Figure(f"{figure}{suffix}", name, "ms", "native", Target(at_most=bound))


FIGURES += _crowd16()
FIGURES += [figure for tokens in NATIVE_CHUNKS for figure in _native_lookups(tokens)]

FIGURES += [
    Figure(
        "many_ping_max",
        "very many objects: the longest ping while they are stored",
        "ms",
        "many",
        Target(at_most=50),
    ),
    Figure("many_ping_p99", "  ping, p99", "ms", "many"),
    Figure("many_store_max", "  the longest store of 128k tokens", "ms", "many"),
    Figure("many_bytes", "  memory of an object beside the L1", "B", "many", Target(at_most=400)),
    Figure(
        "restart_sigterm",
        "L1 kept, full: first hit after the start, after SIGTERM",
        "s",
        "restart",
        Target(at_most=5),
    ),
    Figure("restart_sigkill", "  after SIGKILL", "s", "restart", Target(at_most=5)),
    Figure("restart_many", "  very many objects, after SIGTERM", "s", "restart"),
]

L2 = {
    "fs": "fs, the peer with its defaults",
    "direct": "fs, the peer with use_odirect",
    "nixl": "NIXL POSIX, both with use_direct_io",
}
_LOAD_TARGETS = {
    "fs": Target(times_peer=1.8, reference=FIO_READ, times_reference=0.85),
    "direct": Target(times_peer=1),
    "nixl": Target(reference=FIO_READ, times_reference=0.85),
}
_STORE_TARGETS = {
    "fs": Target(reference=FIO_WRITE, times_reference=0.85),
    "direct": Target(),
    "nixl": Target(reference=FIO_WRITE, times_reference=0.85),
}


def _l2(kind: str) -> list[Figure]:
    """What is measured with each adapter."""
    title, key = L2[kind], f"l2_{kind}"
    return [
        _rate(f"{key}_load", f"L2 load, {title}", "l2", _LOAD_TARGETS[kind]),
        _rate(f"{key}_load_again", "  again, what is buffered in the page cache", "l2"),
        Figure(f"{key}_ready", "  lookup to ready, 2k tokens that only L2 has", "ms", "l2"),
        Figure(f"{key}_load_cpu", "  CPU of a load", "s/GB", "l2"),
        _rate(f"{key}_store", f"L2 store, {title}", "l2", _STORE_TARGETS[kind]),
        _rate(f"{key}_store_steady", "  from the first object to the last", "l2"),
        Figure(f"{key}_store_cpu", "  CPU of a store", "s/GB", "l2"),
    ]


def _effect(key: str, title: str) -> list[Figure]:
    """What an L2 leaves of a rate of the L1."""
    kept = f"L2: rate of {title} with it, of that without"
    return [
        Figure(f"{key}_kept", kept, "%", "l2", Target(at_least=95), higher_is_better=True),
        _rate(f"{key}_without", "  without", "l2"),
        _rate(f"{key}_with", "  with", "l2"),
    ]


FIGURES += [
    _rate(FIO_READ, "fio read, files of 32 MiB, same directory", "l2"),
    _rate(FIO_WRITE, "fio write, files of 32 MiB, same directory", "l2"),
    *(figure for kind in L2 for figure in _l2(kind)),
    Figure(
        "l2_restart", "L2: first hit after a restart, 20,480 objects", "s", "l2", Target(at_most=2)
    ),
    *(
        figure
        for pattern, how in (("burst", "in bursts"), ("nonstop", "without a pause"))
        for what in ("store", "retrieve")
        for figure in _effect(f"l2_{pattern}_{what}", f"{what}s {how}")
    ),
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
    result = []
    for figure in FIGURES:
        theirs, own = peer.get(figure.key), ours.get(figure.key)
        if not theirs and not own:
            continue
        peer_median = median(theirs) if theirs else None
        our_median = median(own) if own else None
        reached = None
        if our_median is not None:
            reference = ours.get(figure.target.reference or "")
            reached = figure.target.reached(
                our_median, peer_median, median(reference) if reference else None
            )
        result.append(Row(figure, peer_median, our_median, reached))
    return result
