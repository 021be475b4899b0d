"""`python -m bench`: both servers in turn, round by round, then one table."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import (
    cases,
    crowd,
    disk,
    idle,
    l2,
    many,
    mixed,
    plot,
    replay,
    report,
    restart,
    servers,
    ttft,
)
from bench.cases import Pools
from bench.common import unlink_segments
from bench.figures import Samples, rows
from bench.servers import Server

CASES = (
    *("ready", "handle", "engine", "small", "small4", "lookup", "lookup4", "native"),
    *("crowd16", "idle", "many"),
    *("restart", "ttft", "replay", "l2"),
)
# These start servers of their own, for the last round only.
APART = {"restart", "ttft", "replay", "l2"}
SETTLE = 3.0


@dataclass(frozen=True)
class Settings:
    """How much is measured; the same for both servers."""

    servers: tuple[str, ...]
    cases: tuple[str, ...]
    rounds: int
    repeats: int
    small_repeats: int
    idle_seconds: float
    crowd_seconds: int
    many_objects: int
    l1_gb: int
    l2_dir: str
    l2_groups: int
    l2_pairs: int
    l2_seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    settings = _settings(options)
    # Set, not inherited: a shell's background job starts with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H%M%SZ")
    about = {"machine": report.machine(), "settings": asdict(settings)}
    if "l2" in settings.cases:
        about["l2"] = disk.about(Path(settings.l2_dir))
        if shutil.which("fio") is None:
            print("fio: not installed (scripts/install.py bench)", file=sys.stderr)
    if idle.machine_load() > 0.1:
        print("warning: other processes are busy, the figures will be noisy", file=sys.stderr)
    rounds: dict[str, list[Samples]] = {name: [] for name in settings.servers}
    try:
        _measure(settings, rounds)
    except KeyboardInterrupt:
        print("interrupted, servers stopped", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"bench failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    finally:
        unlink_segments(os.getpid())
    results = rows(report.merged(rounds.get("peer", [])), report.merged(rounds.get("ours", [])))
    print(report.markdown_table(results) if options.markdown else report.text_table(results))
    target = Path(options.output) / f"{date}.json"
    report.write_json(target, date, about, rounds)
    print(f"\nwritten: {target}", file=sys.stderr)
    if plot.write(target.with_suffix(".png"), results):
        print(f"written: {target.with_suffix('.png')}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measures `lmcache server` (peer) and `kv-sidecar serve` (ours) in turn.",
    )
    parser.add_argument("--quick", action="store_true", help="one short round, noisier figures")
    parser.add_argument(
        "--only",
        action="append",
        choices=CASES,
        metavar="CASE",
        default=None,
        help=f"only this case (repeat for more): {', '.join(CASES)}",
    )
    parser.add_argument("--rounds", type=int, help="how often each server is started (3)")
    parser.add_argument("--server", choices=("ours", "peer", "both"), default="both")
    parser.add_argument(
        "--objects",
        type=int,
        default=200_000,
        help="tiny ones, of the cases many and restart; 1,000,000 fit (200,000)",
    )
    parser.add_argument("--l1-gb", type=int, default=6, help="L1 of each server, in GiB (6)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--l2-dir", default=tempfile.gettempdir(), help="folder on the disk to measure L2 on"
    )
    parser.add_argument("--output", default="bench-results", help="folder for JSON and plot")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    quick = options.quick
    cases = tuple(case for case in CASES if options.only is None or case in options.only)
    return Settings(
        servers=("peer", "ours") if options.server == "both" else (options.server,),
        cases=cases,
        rounds=options.rounds or (1 if quick or set(cases) <= APART else 3),
        repeats=4 if quick else 8,
        small_repeats=20 if quick else 50,
        idle_seconds=5 if quick else 20,
        crowd_seconds=5 if quick else 15,
        many_objects=options.objects // 10 if quick else options.objects,
        l1_gb=options.l1_gb,
        l2_dir=os.path.abspath(options.l2_dir),
        l2_groups=2 if quick else 3,
        l2_pairs=2 if quick else 4,
        l2_seconds=4,
    )


def _measure(settings: Settings, rounds: dict[str, list[Samples]]) -> None:
    """Fills `rounds`; each round starts both servers anew, in alternating order."""
    with tempfile.TemporaryDirectory(prefix="kv-bench-") as logs, closing(Pools()) as pools:
        for number in range(settings.rounds):
            order = settings.servers if number % 2 == 0 else settings.servers[::-1]
            for name in order:
                started = time.monotonic()
                last = number == settings.rounds - 1
                rounds[name].append(_one_server(name, settings, pools, Path(logs), last))
                took = time.monotonic() - started
                print(
                    f"round {number + 1}/{settings.rounds}: {name} done in {took:.0f} s",
                    file=sys.stderr,
                )


def _one_server(name: str, settings: Settings, pools: Pools, logs: Path, last: bool) -> Samples:
    samples: Samples = {}
    if set(settings.cases) - APART:
        samples |= _l1_cases(name, settings, pools, logs, last)
    last = last or set(settings.cases) <= APART
    if "restart" in settings.cases and last and name == "ours":  # the peer's L1 ends with it
        samples |= restart.measure(pools.large, settings.l1_gb, settings.many_objects, logs)
    if "ttft" in settings.cases and last and name == "ours":  # the peer has one client alone
        samples |= ttft.measure(logs)
    if "replay" in settings.cases and last:
        samples |= replay.measure(name, pools, logs)
    if "l2" in settings.cases and last:
        plan = l2.Plan(
            Path(settings.l2_dir),
            settings.l1_gb,
            settings.l2_groups,
            settings.l2_pairs,
            settings.l2_seconds,
        )
        samples |= l2.measure(name, plan, pools, logs)
    return samples


def _l1_cases(name: str, settings: Settings, pools: Pools, logs: Path, last: bool) -> Samples:
    """The cases that one server without an L2 goes through."""
    samples: Samples = {}
    with servers.running(name, settings.l1_gb, logs) as server:
        if "ready" in settings.cases:
            ready = server.ready
            samples |= {
                "ready": [max(ready.rpc, ready.http)],
                "ready_rpc": [ready.rpc],
                "ready_http": [ready.http],
            }
        server.wait_populated()
        for case in settings.cases:
            samples |= _one_case(case, server, settings, pools)
        if name == "ours" and "native" in settings.cases:  # no other server has that door
            for figure, values in _native(server, settings, pools):
                samples.setdefault(figure, []).extend(values)
        if last and "idle" in settings.cases:
            if "handle" not in settings.cases:
                cases.handle(server.url, pools, repeats=1)
            time.sleep(SETTLE)
            samples |= idle.measure(server.process.pid, settings.idle_seconds)
        if last and "many" in settings.cases:  # what it leaves would count as idle memory
            samples |= many.measure(server, settings.many_objects)
    return samples


def _native(server: Server, settings: Settings, pools: Pools) -> Iterator[tuple[str, list[float]]]:
    if importlib.util.find_spec("vllm") is None:
        print("vllm: not installed (scripts/install.py engine)", file=sys.stderr)
        return
    from bench import native, native_worker

    yield from native.lookups(server.url, server.process.pid, settings.repeats).items()
    yield from native_worker.measure(server.url, pools, settings.repeats).items()


def _one_case(case: str, server: Server, settings: Settings, pools: Pools) -> Samples:
    url = server.url
    if case == "handle":
        return cases.handle(url, pools, settings.repeats)
    if case == "engine":
        return cases.engine(url, pools, settings.repeats)
    if case == "lookup":
        return cases.lookup(url, pools, settings.repeats)
    if case == "lookup4":
        return crowd.lookups(url, 4, settings.repeats)
    if case == "crowd16":
        return mixed.measure(url, settings.crowd_seconds)
    if case in ("small", "small4"):
        return crowd.small(url, 4 if case == "small4" else 1, settings.small_repeats)
    return {}
