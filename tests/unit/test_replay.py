"""`kv-sidecar replay`: what a trace says, what caches make of it, and the log of lookups."""

from __future__ import annotations

import gzip
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar.cache.leases import Scope
from sidecar.cache.policies import POLICIES
from sidecar.cli import main
from sidecar.config.options import EVICTION_POLICIES
from sidecar.handlers.lookup_log import LookupLog
from sidecar.replay import belady, simulation
from sidecar.replay.simulation import Eviction
from sidecar.replay.sweep import BEST, curves, default_sizes, distinct_tokens
from sidecar.replay.trace import Line, Request, TraceError, in_chunks, read

CONVERSATION = Path(__file__).parents[2] / "bench" / "traces" / "conversation.jsonl.gz"
ON_DEMAND = Eviction(1.0, 0.0)
AS_SERVED = Eviction(0.95, 0.05)
EVICTING = sorted(set(POLICIES) - {"noop"})


def test_the_names_of_the_policies_are_those_of_the_option() -> None:
    assert set(EVICTION_POLICIES) == set(POLICIES)


def trace_of(path: Path, *lines: dict[str, Any]) -> Path:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_chunks_are_told_by_all_that_is_before_them(tmp_path: Path) -> None:
    path = trace_of(
        tmp_path / "t.gz",
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 3]},
        {"timestamp": 9, "input_length": 1536, "output_length": 5, "hash_ids": [1, 9, 3]},
    )
    lines = read(path)
    for size, counts in ((256, [4, 6]), (512, [2, 3]), (1024, [1, 1]), (4096, [0, 0])):
        requests = in_chunks(lines, size)
        assert [len(request.hashes) for request in requests] == counts
        shared = [a == b for a, b in zip(*(r.hashes for r in requests), strict=False)]
        assert shared == [at < 512 // size for at in range(min(counts))]
    assert distinct_tokens(lines, 512) == 4 * 512
    with pytest.raises(TraceError, match="chunks of 384 tokens cannot be told from ids of 512"):
        in_chunks(lines, 384)


def test_tenants_share_nothing() -> None:
    lines = [Line(512, [1], 512, tenant) for tenant in ("", "a", "b")]
    assert distinct_tokens(lines, 512) == 3 * 512


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "no request in it"),
        (b"{}\n", ":1: Object missing required field `input_length`"),
        (b'{"input_length": -1, "hash_ids": []}\n', ":1: Expected `int` >= 0"),
        (b'{"input_length": 1, "hash_ids": ["a"]}\n', ":1: Expected `int`, got `str`"),
        (b"\xff\n", ":1: "),
        (
            b'{"input_length": 1, "hash_ids": []}\n'
            b'{"input_length": 1, "hash_ids": [], "tokens_per_id": 4}',
            "its lines differ in tokens_per_id",
        ),
    ],
)
def test_what_is_no_trace_is_one_line(
    tmp_path: Path, text: bytes, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace"
    path.write_bytes(text)
    assert main(["replay", str(path)]) == 2
    complaint = capsys.readouterr().err
    assert reason in complaint and complaint.count("\n") == 1


def test_no_file_and_no_gzip_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.gz").write_bytes(b"no gzip")
    for path in (tmp_path / "none", tmp_path / "t.gz", tmp_path):
        assert main(["replay", str(path)]) == 2
        assert str(path) in capsys.readouterr().err


def lru(requests: list[Request], chunks: int) -> int:
    """As in a textbook, tails first."""
    kept, hits = OrderedDict[bytes, None](), 0
    for request in requests:
        known = [chunk in kept for chunk in request.hashes]
        hits += known.index(False) if False in known else len(known)
        for chunk in reversed(request.hashes):
            kept[chunk] = None
            kept.move_to_end(chunk)
        while len(kept) > chunks:
            kept.popitem(last=False)
    return hits


TRACES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=40)


@settings(deadline=None)
@given(prompts=TRACES, chunks=st.integers(4, 12))
def test_a_replay_is_what_the_policy_says_and_never_better_than_the_best(
    prompts: list[list[int]], chunks: int
) -> None:
    requests = in_chunks([Line(len(ids) * 512, ids) for ids in prompts], 512)
    best = belady.hit_chunks(requests, chunks)
    for policy in EVICTING:
        assert simulation.hit_chunks(requests, policy, chunks, ON_DEMAND) <= best
    assert simulation.hit_chunks(requests, "LRU", chunks, ON_DEMAND) == lru(requests, chunks)
    everything = sum(len(request.hashes) for request in requests)
    distinct = len({chunk for request in requests for chunk in request.hashes})
    assert belady.hit_chunks(requests, distinct) == everything - distinct


def test_the_best_knows_what_comes() -> None:
    """Of three prompts of one chunk, and room for one, the one that comes back is kept."""
    requests = in_chunks([Line(512, [n]) for n in (1, 2, 3, 1, 2)], 512)
    assert belady.hit_chunks(requests, 1) == 1
    assert belady.hit_chunks(requests, 2) == 2
    assert simulation.hit_chunks(requests, "LRU", 2, ON_DEMAND) == 0


def test_what_we_recommend_is_nowhere_worse_than_lru_on_conversations() -> None:
    """1,200 requests that were published; docs/operate.md has both traces at all sizes."""
    lines = read(CONVERSATION)
    requests = in_chunks(lines, 1024)
    gain = []
    for chunks in (500, 1500, 3700, 7500):
        hits = {
            policy: simulation.hit_chunks(requests, policy, chunks, AS_SERVED)
            for policy in ("LRU", "ARC", "IsolatedLRU")
        }
        assert hits["IsolatedLRU"] == hits["LRU"], "there is one tenant"
        gain.append(hits["ARC"] / hits["LRU"])
        assert hits["ARC"] <= belady.hit_chunks(requests, chunks)
    assert min(gain) > 0.99
    assert max(gain) > 1.05


def test_the_command_prints_a_table_and_draws_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"input_length": 1024, "hash_ids": [n % 3, 10 + n]} for n in range(30)]
    path, plot = trace_of(tmp_path / "t", *rows), tmp_path / "plot.svg"
    gib = str(8 * 1024 / 2**30)
    sizes = ("--bytes-per-token", "1", "--sizes", f"{gib},1", "--chunk-size", "512,1024")
    assert main(["replay", str(path), *sizes, "--plot", str(plot)]) == 0
    text = capsys.readouterr().out.splitlines()
    assert text[0] == (
        "30 requests, 30,720 tokens, 16,896 different ones; chunks of 512, 1024 tokens"
    )
    assert text[3].split() == ["policy", "8", "KiB", "1", "GiB"]
    assert text[-4].split()[:2] == ["best", "possible,"] and len(text) == 10
    drawn = ElementTree.fromstring(plot.read_text())
    assert len(drawn.findall("{*}polyline")) == 6
    assert main(["replay", str(path), "--json", "--policies", "LRU"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["size_tokens"] == default_sizes(read(path))
    assert [curve["policy"] for curve in figures["curves"]] == ["LRU", BEST]
    assert figures["curves"][0]["hits"][-1] == pytest.approx(100 * 27 / 60)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--sizes", "1"], "--sizes needs --bytes-per-token"),
        (["--policies", "LRU,FIFO"], "'FIFO' is not one of LRU, ARC"),
        (["--chunk-size", "100"], "chunks of 100 tokens cannot be told"),
        (["--plot", "/no/such/folder/x.svg"], "--plot: cannot write"),
        (["--eviction-ratio", "2"], "2 is not between 0 and 1"),
    ],
)
def test_wrong_usage_is_one_line(
    tmp_path: Path, arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = trace_of(tmp_path / "t", {"input_length": 512, "hash_ids": [1]})
    assert main(["replay", str(path), *arguments]) == 2
    assert reason in capsys.readouterr().err


def test_isolated_policies_see_the_tenants_of_a_trace() -> None:
    """One that asks for everything once takes nothing from one that comes back."""
    lines = []
    for turn in range(60):
        lines.append(Line(5 * 512, list(range(5)), 512, "steady"))
        lines.append(Line(8 * 512, [100 + turn] * 8, 512, "scanner"))
    (shared,) = curves(lines, ["LRU"], [512], [12 * 512], ON_DEMAND)
    (isolated,) = curves(lines, ["IsolatedLRU"], [512], [12 * 512], ON_DEMAND)
    assert isolated.hits[0] == pytest.approx(100 * 59 * 5 / (60 * 13))
    assert shared.hits[0] < isolated.hits[0]


SCOPE = Scope("model", 1, "")
HASHES = [bytes([n]) * 32 for n in range(4)]


def recorded(path: Path, *lookups: tuple[Scope, list[bytes]]) -> list[Line]:
    log = LookupLog(path, 256)
    for scope, hashes in lookups:
        log.add(scope, hashes, 256 * len(hashes) + 7)
    log.close()
    assert not log.dropped
    return read(path)


def test_a_log_of_lookups_is_a_trace_that_tells_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "lookups"
    other = SCOPE._replace(cache_salt="secret")
    lines = recorded(path, (SCOPE, HASHES), (SCOPE, HASHES[:2]), (other, HASHES))
    assert [line.input_length for line in lines] == [1031, 519, 1031]
    whole, part, theirs = (line.hash_ids for line in lines)
    assert part == whole[:2] and not set(theirs) & set(whole)
    assert lines[0].tenant == "" and len(lines[2].tenant) == 16
    text = path.read_text()
    assert "secret" not in text and "model" not in text
    assert not any(chunk_hash.hex() in text for chunk_hash in HASHES)
    assert path.stat().st_mode & 0o777 == 0o600
    assert distinct_tokens(lines, 256) == 8 * 256


def test_a_later_life_appends_and_cannot_be_compared(tmp_path: Path) -> None:
    path = tmp_path / "lookups"
    recorded(path, (SCOPE, HASHES))
    first, second = recorded(path, (SCOPE, HASHES))
    assert not set(first.hash_ids) & set(second.hash_ids)


def test_a_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sidecar.handlers.lookup_log._LARGEST", 1000)
    lines = recorded(tmp_path / "lookups", *[(SCOPE, HASHES)] * 50)
    assert 0 < len(lines) < 50
    assert (tmp_path / "lookups").stat().st_size <= 1000


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_ends_the_log_and_nothing_else() -> None:
    log = LookupLog(Path("/dev/full"), 256)
    for _ in range(10_000):
        log.add(SCOPE, HASHES, 1024)
    log.close()
    assert not log._waiting._thread.is_alive()


def test_a_log_that_cannot_be_opened_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "no" / "folder", tmp_path):
        with pytest.raises(OSError):
            LookupLog(path, 256)
