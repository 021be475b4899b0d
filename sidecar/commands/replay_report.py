"""What `kv-sidecar replay` does and prints."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sidecar.commands.output import amount, columns
from sidecar.config import ConfigError
from sidecar.replay.plot import Line, svg
from sidecar.replay.simulation import Eviction
from sidecar.replay.sweep import BEST, Curve, curves, default_sizes, distinct_tokens
from sidecar.replay.trace import Line as Traced
from sidecar.replay.trace import TraceError, read


def run(given: argparse.Namespace) -> int:
    """Print the figures. Raises ConfigError for a trace that is none."""
    if given.sizes and not given.bytes_per_token:
        raise ConfigError("--sizes needs --bytes-per-token")
    try:
        lines = read(given.trace)
        chunk_sizes = given.chunk_size or [lines[0].tokens_per_id]
        sizes = _sizes(given, lines)
        eviction = Eviction(given.eviction_trigger_watermark, given.eviction_ratio)
        found = curves(lines, [*given.policies, BEST], chunk_sizes, sizes, eviction)
    except TraceError as error:
        raise ConfigError(str(error)) from None
    labels = [_label(given, size) for size in sizes]
    names = [_name(curve, chunk_sizes) for curve in found]
    if given.plot:
        plotted = [Line(name, curve.hits) for name, curve in zip(names, found, strict=True)]
        _write(given.plot, svg(plotted, sizes, labels))
    if given.json:
        print(json.dumps(_figures(found, sizes), indent=2))
    else:
        print("\n".join([*_about(lines, chunk_sizes), "", *_table(found, names, labels)]))
    return 0


def _sizes(given: argparse.Namespace, lines: Sequence[Traced]) -> list[int]:
    """In tokens."""
    if given.sizes:
        return sorted(max(1, int(gib * 2**30 / given.bytes_per_token)) for gib in given.sizes)
    return default_sizes(lines)


def _label(given: argparse.Namespace, tokens: int) -> str:
    if given.bytes_per_token:
        return amount(tokens * given.bytes_per_token)
    return f"{tokens / 1e6:.3g}M" if tokens >= 1e5 else f"{tokens:,}"


def _name(curve: Curve, chunk_sizes: Sequence[int]) -> str:
    return curve.policy if len(chunk_sizes) == 1 else f"{curve.policy}, {curve.chunk_size}"


def _about(lines: Sequence[Traced], chunk_sizes: Sequence[int]) -> list[str]:
    tokens = sum(line.input_length for line in lines)
    distinct = distinct_tokens(lines, chunk_sizes[0])
    sizes = ", ".join(map(str, chunk_sizes))
    return [
        f"{len(lines):,} requests, {tokens:,} tokens, {distinct:,} different ones; "
        f"chunks of {sizes} tokens",
        "percent of all tokens that are hits, by the size of the cache",
    ]


def _table(found: Sequence[Curve], names: Sequence[str], labels: Sequence[str]) -> list[str]:
    rows = [
        (
            name,
            *(
                f"{hit:{max(5, len(label))}.2f}"
                for hit, label in zip(curve.hits, labels, strict=True)
            ),
        )
        for name, curve in zip(names, found, strict=True)
    ]
    heads = [f"{label:>5}" for label in labels]
    return columns([("policy", *heads), *rows])


def _figures(found: Sequence[Curve], sizes: Sequence[int]) -> dict[str, Any]:
    return {"size_tokens": list(sizes), "curves": [curve._asdict() for curve in found]}


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--plot: cannot write {path}: {error.strerror}") from None
