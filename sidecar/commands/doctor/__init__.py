"""`kv-sidecar doctor`: one small function for each thing that may be wrong, each a finding."""

import argparse
from collections.abc import Sequence
from typing import Any

from connectors.hazards import SALTED
from sidecar.config import flags

_DESCRIPTION = (
    "Look for what keeps a sidecar and its workers from working. With the options that serve "
    "gets, it looks at what they need; a worker's command after -- is checked for known traps and "
    "not run; a running server is tried with a store and a retrieve. Exit code: 0 nothing wrong, "
    "1 problems, 2 wrong usage."
)


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="what is wrong: versions, memory, L2, ports, a worker, a live store",
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
