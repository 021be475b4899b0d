"""`kv-sidecar serve`."""

import os
from collections.abc import Sequence

from sidecar.commands.output import complain
from sidecar.config import Config, load
from sidecar.config.show import as_yaml


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
