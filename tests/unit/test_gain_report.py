"""What examples.gain says of a run that did not go by the book."""

from typing import Any

from examples.counters import SidecarCounts, VllmCounts
from examples.gain_report import Run, others, table

BENCH = {
    "completed": 2,
    "failed": 1,
    "total_input_tokens": 2000,
    "duration": 3.25,
    "mean_ttft_ms": 1500.4,
    "median_ttft_ms": 1500.4,
    "p99_ttft_ms": 2000.0,
    "ttfts": [1.0, 0.0, 2.0],
    "errors": ["", "Bad Request", ""],
}


def run(**vllm: int) -> Run:
    bench: dict[str, Any] = BENCH
    nothing = SidecarCounts(looked_up=0, hit_l1=0, hit_l2=0, chunks_stored=0, chunks_loaded=0)
    return Run("first", bench, VllmCounts(**vllm), nothing)


def test_shares_are_of_all_prompt_tokens() -> None:
    lines = table([run(computed=1000, own_cache=600, transferred=400)]).splitlines()

    assert [line.split()[-1] for line in lines[1:8]] == [
        *("2,000", "1,000", "50.0%", "600", "30.0%", "400", "20.0%"),
    ]


def test_prompts_of_others_are_told() -> None:
    assert others(run(computed=2000, own_cache=0, transferred=0)) is None
    told = others(run(computed=2000, own_cache=1500, transferred=0))
    assert told == "first: +1,500 prompt tokens are not of this load"


def test_a_failed_request_has_no_wait() -> None:
    assert run(computed=0, own_cache=0, transferred=0).first_token_seconds() == [1.0, 2.0]
    assert "0.0%" in table([run(computed=0, own_cache=0, transferred=0)])
