"""Command-line arguments of a worker, ours and the user's, of which the user's win."""

import json
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# Not a negative number.
_OPTION = re.compile(r"--?[A-Za-z]")


@dataclass(frozen=True)
class Argument:
    """One option: the name it is compared by, and its tokens as they stand on the line."""

    name: str
    tokens: tuple[str, ...]

    @property
    def value(self) -> str:
        """The only or last one, of `--x VALUE` or `--x=VALUE`."""
        return self.tokens[-1].removeprefix(f"{self.tokens[0].partition('=')[0]}=")


@dataclass(frozen=True)
class Merged:
    """The arguments to run with, and one line for each of ours that gave way."""

    tokens: tuple[str, ...]
    conflicts: tuple[str, ...]


def is_off(flag: str) -> bool:
    """`--no-x`, or `--no_x`."""
    return flag.startswith(("--no-", "--no_"))


def option(flag: str, *values: str) -> Argument:
    """An argument as `--flag VALUE...`."""
    return Argument(_name(flag), (flag, *values))


def compact(config: dict[str, Any]) -> str:
    """JSON without blanks, for an argument."""
    return json.dumps(config, separators=(",", ":"))


def merge(ours: Sequence[Argument], users: Sequence[str]) -> Merged:
    """Ours less what the user gives too, then the user's, untouched."""
    given = {argument.name: argument for argument in split(users)}
    kept = [argument for argument in ours if argument.name not in given]
    conflicts = [
        f"{shlex.join(given[argument.name].tokens)} takes the place of "
        f"{shlex.join(argument.tokens)}"
        for argument in ours
        if argument.name in given and not _same(argument, given[argument.name])
    ]
    tokens = [token for argument in kept for token in argument.tokens]
    return Merged((*tokens, *users), tuple(conflicts))


def split(tokens: Sequence[str]) -> Iterator[Argument]:
    """The options in `tokens`, each with the values that follow it."""
    current: list[str] = []
    for token in tokens:
        if _OPTION.match(token) and current:
            yield Argument(_name(current[0]), tuple(current))
            current = []
        current.append(token)
    if current:
        yield Argument(_name(current[0]), tuple(current))


def by_name(tokens: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The options in `tokens`, `--x=1` as `--x 1`; of one that is repeated the last counts."""
    return {argument.name: _spread(argument.tokens) for argument in split(tokens)}


def _spread(tokens: tuple[str, ...]) -> tuple[str, ...]:
    flag, equals, value = tokens[0].partition("=")
    return (flag, value, *tokens[1:]) if equals else tokens


def _name(token: str) -> str:
    """What vLLM's parser makes of a spelling: `--no-x`, `--x_y=1` and `--x-y.key` name options."""
    flag = token.split("=")[0].split(".")[0].replace("_", "-")
    return "--" + flag.removeprefix("--").removeprefix("no-")


def _same(ours: Argument, users: Argument) -> bool:
    flag, *rest = users.tokens
    values = [*flag.split("=", 1), *rest]
    return tuple(values) == ours.tokens or tuple(values[1:]) == ours.tokens
