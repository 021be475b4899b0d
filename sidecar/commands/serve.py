"""`kv-sidecar serve`."""

import os
from collections.abc import Sequence
from typing import Any

from sidecar.commands.output import complain
from sidecar.config import Config, flags, load
from sidecar.config.show import as_yaml


def add(commands: Any) -> None:
    """For the list of commands and for completion; `run` has a parser of its own."""
    parser = commands.add_parser("serve", help="run the server (serve --help lists its options)")
    flags.add_serve_options(parser)


def run(arguments: Sequence[str]) -> int:
    """Serve until a signal. Raises ConfigError before anything has started."""
    loaded = load(arguments, os.environ)
    for warning in loaded.warnings:
        complain(f"warning: {warning}")
    if loaded.print_config:
        print(as_yaml(loaded.config, loaded.sources))
        return 0
    return _serve(loaded.config)


def _serve(config: Config) -> int:
    # The other subcommands need none of what the server imports.
    from sidecar.app import serve

    return serve(config)
