"""`kv-sidecar doctor`: one small function for each thing that may be wrong, each a finding."""

import argparse
from collections.abc import Sequence
from typing import Any

from connectors.hazards import SALTED
from sidecar.config import flags

_DESCRIPTION = (
    "Check what a sidecar and its workers need. It takes the options of serve; a worker's command "
    "after -- is checked for known problems and not run; a running server is tested with a store "
    "and a retrieve. Exit code: 0 no problem, 1 problems, 2 wrong usage."
)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="check versions, memory, L2, ports, a worker's command, a running server",
        usage="kv-sidecar doctor [--json] [OPTIONS OF serve] [-- WORKER COMMAND]",
        description=_DESCRIPTION,
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    parser.add_argument(
        SALTED,
        action="store_true",
        help="the worker's requests for LoRA adapters, or with prompt embeddings, carry a "
        "cache_salt each",
    )
    flags.add_options(parser)


def run(given: argparse.Namespace, users: Sequence[str]) -> int:
    """Print what the checks find; 1 if there is a problem. Raises ConfigError."""
    # Here, not above: the other subcommands need nothing of what the checks import.
    from sidecar.commands.doctor.command import examine

    return examine(given, users)
