"""How bench.gpu judges what it has measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the workers of the bench have tensors")
pytest.importorskip("lmcache", reason="the stock client is not installed")

from bench.common import Span
from bench.gpu import checks, cli, requests
from bench.gpu.expected import FIGURES
from bench.gpu.findings import Finding, as_json, line, markdown
from bench.gpu.interference import percentile
from bench.gpu.pinning import longest_stall
from bench.gpu.shapes import MODELS, RUNS, Shape

GOOD, BAD = Finding("link_load", 53.2), Finding("pin_piece", 31.0, "the longest 99.0 ms")
FREE, NONE = Finding("tp8_store_busy", 12.0), Finding("far_load", None, "one NUMA node")
REFERENCE = {"store": 50.0, "load": 50.0, "both": 90.0}


def test_a_figure_stands_beside_what_is_expected_of_it() -> None:
    assert [f.verdict for f in (GOOD, BAD, FREE, NONE)] == [
        *("ok", "MISSED", "recorded", "not measured"),
    ]
    assert line(GOOD).split()[-5:] == ["53.2", "GB/s", ">=", "52", "ok"]
    assert line(BAD).endswith("31 ms  <= 15    MISSED  the longest 99.0 ms")
    assert as_json(BAD)["met"] is False
    assert as_json(NONE)["met"] is None


def test_the_table_is_in_the_order_of_the_checks() -> None:
    rows = markdown([FREE, BAD, NONE, GOOD]).splitlines()
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows[2:]] == ["4", "4", "5", "9"]
    assert rows[4] == (
        "| 5 | pin 64 MiB of resident tmpfs, median | 31 ms | <= 15 | target "
        "| MISSED: the longest 99.0 ms |"
    )
    assert all(row.count("|") == rows[0].count("|") for row in rows)


def test_the_bounds_themselves_are_good_enough() -> None:
    for key, expected in FIGURES.items():
        bound = expected.target.at_least or expected.target.at_most
        if bound is not None:
            assert Finding(key, bound).verdict == "ok", key


def test_the_sweep_gives_the_loads_that_somebody_has_published() -> None:
    rows = [
        {"pin_ms_a_piece": 3.0, "piece_mib": 64},
        *(
            {"run_kib": kib, "runs": runs, "direction": direction, "batches": 30.0, "staged": 40.0}
            for kib in (4, 28, 128)
            for runs in (64, 10_000)
            for direction in ("store", "load")
        ),
    ]
    assert {f.key: f.value for f in checks.of_sweep(rows)} == {
        "batches_4_10000": 30.0,
        "staged_4": 40.0,
        "batches_28_10000": 30.0,
    }


def test_a_stall_is_what_a_step_takes_longer_than_others() -> None:
    steps = [Span(n, n + 0.5) for n in range(10)]
    steps[4] = Span(4, 4.9)  # ends in the pinning
    assert longest_stall(steps, Span(4.8, 6.1)) == pytest.approx(0.4)
    assert percentile(steps, 50) == pytest.approx(0.5)
    assert percentile(steps, 100) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("kib", "ours", "verdicts"),
    [
        (64, {"store": 46.0, "load": 45.9}, ["ok", "MISSED"]),
        (16, {"store": 42.5, "load": 42.4}, ["ok", "MISSED"]),
        (4, {"store": 1.0, "load": 1.0}, ["", ""]),
        (64, {"store": 46.0, "load": 50.0, "both": 79.9}, ["ok", "ok", "MISSED"]),
    ],
)
def test_requests_beside_plain_copies(
    kib: int, ours: dict[str, float], verdicts: list[str]
) -> None:
    shape, clients = Shape("runs", kib, 32, kib // 4), 4 if "both" in ours else 1
    rows = list(requests.rows(shape, clients, REFERENCE, {"ours": ours}))
    table = requests.markdown(rows).splitlines()
    assert [row.split("|")[-2].strip() for row in table[2:]] == verdicts
    assert table[2].startswith(f"| runs | {clients} | store | 50.0 | - | {ours['store']:.1f} |")
    assert all(requests.line(row).startswith("runs") for row in rows)


@pytest.mark.parametrize("shape", RUNS + MODELS, ids=lambda shape: shape.name)
def test_requests_are_whole_chunks_of_about_a_quarter_of_a_gigabyte(shape: Shape) -> None:
    assert shape.tokens % 256 == 0
    assert 0.9 < shape.nbytes / (256 << 20) <= 1


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], cli.PARTS),
        (["--sweep"], ("sweep",)),
        (["--checks"], checks.PARTS),
        (["--parts", "events", "requests", "--checks"], ("events", "requests")),
    ],
)
def test_parts_that_are_asked_for(arguments: list[str], parts: Sequence[str]) -> None:
    assert set(cli._wanted(cli._parser().parse_args(arguments))) == set(parts)


def test_what_has_been_measured_is_kept_whatever_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.torch.cuda, "get_device_name", lambda _: "a GPU")
    options = cli._parser().parse_args(["--parts", "events", "batches", "--output", str(tmp_path)])
    run = cli.Run(options, tmp_path)

    def interrupted() -> list[Finding]:
        raise KeyboardInterrupt

    measures = {"batches": lambda: [Finding("batch_call", 1.0)], "events": interrupted}
    monkeypatch.setattr(cli.checks, "parts", lambda *_: measures)
    with pytest.raises(KeyboardInterrupt):
        run.measure()
    (found,) = json.loads(run.target.read_text())["checks"]
    assert found["figure"] == "batch_call"
