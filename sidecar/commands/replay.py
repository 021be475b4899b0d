"""`kv-sidecar replay`."""

import argparse
from pathlib import Path
from typing import Any

from sidecar.commands.arguments import checked
from sidecar.config.options import EVICTION_POLICIES, OPTIONS, Config
from sidecar.config.values import integer, list_of, size_gib

_POLICIES = [name for name in EVICTION_POLICIES if name != "noop"]
_DEFAULTS = {
    name: Config.__dataclass_fields__[name].default
    for name in ("eviction_trigger_watermark", "eviction_ratio")
}


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "replay",
        help="hit rates of other cache sizes and policies, from a trace",
        usage="%(prog)s TRACE [OPTION...]",
        description="Percent of tokens that are hits, by size of the cache (docs/operate.md).",
    )
    parser.add_argument(
        "trace", type=Path, metavar="TRACE", help="of serve --record-lookups, or Mooncake's"
    )
    parser.add_argument(
        "--policies", type=checked(list_of(_policy)), default=["LRU", "ARC"],
        metavar="NAME,...", help="as of serve (default LRU,ARC)",
    )  # fmt: skip
    parser.add_argument(
        "--bytes-per-token", type=checked(integer(1, 2**40)), metavar="BYTES",
        help="as `kv-sidecar size` prints; sizes are then GiB",
    )  # fmt: skip
    parser.add_argument(
        "--sizes", type=checked(list_of(size_gib)), metavar="GIB,...",
        help="needs --bytes-per-token; default: 1/64 of the tokens to all",
    )  # fmt: skip
    parser.add_argument(
        "--chunk-size", type=checked(list_of(integer(1, 1_048_576))), metavar="TOKENS,...",
        help="default: the tokens of one id",
    )  # fmt: skip
    for name in _DEFAULTS:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=checked(OPTIONS[name].parse), metavar="SHARE",
            default=_DEFAULTS[name], help="as of serve (default %(default)s)",
        )  # fmt: skip
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the curves as an SVG")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    parser.set_defaults(run=run)


def _policy(name: str) -> str:
    if name not in _POLICIES:
        raise ValueError(f"{name!r} is not one of {', '.join(_POLICIES)}")
    return name


def run(given: argparse.Namespace) -> int:
    """Print the figures. Raises ConfigError for a trace that is none."""
    # Not above: the other commands have no use for the cache.
    from sidecar.commands import replay_report

    return replay_report.run(given)
