"""The ``kv-sidecar`` command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import connectors.cli
from connectors import lmcache_config
from connectors.errors import ConnectorError
from sidecar import __version__
from sidecar.commands import completion, doctor, replay, serve, size, status, wait
from sidecar.commands.output import complain
from sidecar.config import ConfigError

_COMMANDS = (serve, status, wait, doctor, size, replay, completion, lmcache_config)
# What stands after -- is another program's.
_BEFORE_ANOTHER = {
    "doctor": doctor.run,
    "wait": wait.run,
    "worker-args": connectors.cli.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code; problems are one line on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except (ConfigError, ConnectorError) as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who reads our output has seen enough. Python's own end would complain of it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(arguments: Sequence[str]) -> int:
    # `serve` has its own parser: its options come from the table in sidecar.config.
    if arguments and arguments[0] == "serve":
        return serve.run(arguments[1:])
    return _run_command(arguments)


def _run_command(arguments: Sequence[str]) -> int:
    end = arguments.index("--") if "--" in arguments else len(arguments)
    own, users = arguments[:end], arguments[end + 1 :]
    given = _parser().parse_args(own)
    if given.command in _BEFORE_ANOTHER:
        return _BEFORE_ANOTHER[given.command](given, users)
    if users:
        raise ConfigError(f"{given.command} takes no arguments after --")
    if given.command == "connector":
        return connectors.cli.run(given, users)
    return int(given.run(given))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="kv-sidecar", description="A KV-cache server for vLLM workers.")
    parser.add_argument("--version", action="version", version=f"kv-sidecar {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in _COMMANDS:
        command.add(commands)
    connectors.cli.add_commands(commands)
    parser.set_defaults(parser=parser)
    return parser
