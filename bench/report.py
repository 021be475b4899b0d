"""The results as a table for people, as Markdown and as JSON."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bench.figures import Row, Samples, rows

_HEADER = ["figure", "unit", "peer", "ours", "better by", "target", "reached"]


def machine() -> dict[str, Any]:
    """What the figures depend on besides the servers."""
    cpu = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if "model name" in line),
        platform.machine(),
    )
    memory_kb = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if "MemTotal" in line)
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory_kb / 1e6, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
        **{name: _version(name) for name in ("lmcache", "kv-sidecar", "numpy", "torch", "nixl")},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cells(row: Row) -> list[str]:
    reached = {True: "yes", False: "NO", None: ""}[row.reached]
    ratio = row.ratio
    return [
        row.figure.title,
        row.figure.unit,
        _number(row.peer),
        _number(row.ours),
        "" if ratio is None else f"{ratio:.1f}x",
        row.figure.target.text(),
        reached,
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def text_table(results: Iterable[Row]) -> str:
    table = [_HEADER, *(_cells(row) for row in results)]
    widths = [max(len(line[i]) for line in table) for i in range(len(_HEADER))]
    lines = []
    for line in table:
        cells = [
            cell.rjust(width) if 2 <= i <= 4 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def markdown_table(results: Iterable[Row]) -> str:
    lines = ["| " + " | ".join(_HEADER) + " |", "|---|---|--:|--:|--:|---|---|"]
    for row in results:
        lines.append("| " + " | ".join(cell.strip() for cell in _cells(row)) + " |")
    return "\n".join(lines)


def write_json(
    path: Path, date: str, about: dict[str, Any], rounds: dict[str, list[Samples]]
) -> None:
    """Writes every sample, by server and round, beside the medians and the verdicts."""
    results = rows(merged(rounds.get("peer", [])), merged(rounds.get("ours", [])))
    document = {
        "date": date,
        **about,
        "figures": {
            row.figure.key: {
                "title": row.figure.title.strip(),
                "unit": row.figure.unit,
                "peer_median": row.peer,
                "ours_median": row.ours,
                "better_by": row.ratio,
                "target": row.figure.target.text(),
                "reached": row.reached,
                "samples": {
                    server: [samples.get(row.figure.key, []) for samples in rounds[server]]
                    for server in rounds
                },
            }
            for row in results
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")


def merged(rounds: list[Samples]) -> Samples:
    """All rounds' samples of a server put together, figure by figure."""
    result: Samples = {}
    for samples in rounds:
        for key, values in samples.items():
            result.setdefault(key, []).extend(values)
    return result
