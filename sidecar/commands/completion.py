"""`kv-sidecar completion`."""

import argparse
from collections.abc import Iterator
from typing import Any

_SHELLS = ("bash", "zsh", "fish")
_PATHS = ("FILE", "MODEL")  # metavars of arguments that name a file


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete these commands",
        description='For example: eval "$(kv-sidecar completion bash)" in ~/.bashrc',
    )
    parser.add_argument("shell", choices=_SHELLS)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace) -> int:
    # Here, not above: the other subcommands do not need it.
    import shtab

    for action in _actions(given.parser):
        if action.metavar in _PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(given.parser, given.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of the parser and of those below it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
