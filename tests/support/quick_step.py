"""A step of the first ten minutes on a GPU: QUICK_STEPS says which way each of them goes."""

from __future__ import annotations

import os
import time
from typing import Any

from tests.gpu.quick.report import Report, Skipped


def run(report: Report) -> None:
    report.check("it has begun", True)
    ways = os.environ["QUICK_STEPS"].split()
    _WAYS[ways[int(os.environ["GPU_QUICK_STEP"])]](report)
    report.check("it has come to its end", True)


def _well(report: Report) -> None:
    pass


def _fail(report: Report) -> None:
    raise RuntimeError("a call that fails")


def _wrong(report: Report) -> None:
    report.same("some bytes", False)


def _hang(report: Report) -> None:
    time.sleep(600)


def _crash(report: Report) -> None:
    os.abort()


def _miss(report: Report) -> None:
    report.figure("something measured", 1.0, "GB/s", at_least=2.0)


def _skip(report: Report) -> None:
    raise Skipped("there is none here")


_WAYS: dict[str, Any] = {
    "well": _well,
    "fail": _fail,
    "wrong": _wrong,
    "hang": _hang,
    "crash": _crash,
    "miss": _miss,
    "skip": _skip,
}
