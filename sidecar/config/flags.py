"""The command line of ``kv-sidecar serve``."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sidecar.config import stock_flags
from sidecar.config.options import GROUPS, OPTIONS, flag
from sidecar.config.suggest import suggestion
from sidecar.config.values import ConfigError, boolean

_DESCRIPTION = (
    "Serve KV caches to vLLM workers over the LMCache MP protocol. Each option is also a key of "
    "the YAML file and, as KV_SIDECAR_<NAME>, an environment variable. A flag wins over the "
    "environment, the environment over the file."
)


@dataclass
class Given:
    """Per option the spelling and its text, and what else the command line said."""

    values: dict[str, tuple[str, str]] = field(default_factory=dict)
    config_file: str | None = None
    print_config: bool = False
    warnings: list[str] = field(default_factory=list)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class _Stock(argparse.Action):
    """Collects the uses of flags that only the stock server has."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        namespace.stock = (*namespace.stock, (self.metavar, option_string, values))


def parse(arguments: Sequence[str]) -> Given:
    """The options of `serve` given, as text.

    Raises:
        ConfigError: an unknown flag, one without its value, or a stock flag we cannot honour.
        SystemExit: after printing the help text, where that was asked for.
    """
    parser = _Parser(
        prog="kv-sidecar serve",
        usage="%(prog)s --l1-size-gb GIB [OPTIONS]",
        description=_DESCRIPTION,
        allow_abbrev=False,
    )
    add_serve_options(parser)
    namespace, unknown = parser.parse_known_args(arguments)
    if unknown:
        spelling = unknown[0].split("=")[0]
        raise ConfigError(f"unknown argument {spelling}{suggestion(spelling, map(flag, OPTIONS))}")
    given = read(namespace)
    given.print_config = namespace.print_config
    return given


def add_serve_options(parser: argparse.ArgumentParser) -> None:
    """Add all that `serve` takes."""
    parser.add_argument(
        "--print-config", action="store_true", help="print each value and its origin, then exit"
    )
    add_options(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add --config and a flag for every option, in groups, and the stock server's flags."""
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these options")
    groups: dict[str, Any] = {}
    for name, option in OPTIONS.items():
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(GROUPS[option.group])
        kind: dict[str, Any] = {"action": "append"} if option.is_json else {}
        if option.parse is boolean:
            kind = {"nargs": "?", "const": "true"}
        text = option.help.replace("%", "%%")
        groups[option.group].add_argument(flag(name), metavar="VALUE", help=text, **kind)
    parser.set_defaults(stock=())
    for name in (*stock_flags.IGNORED, *stock_flags.REFUSED):
        parser.add_argument(
            *stock_flags.spellings(name),
            action=_Stock,
            nargs="*",
            metavar=name,
            dest="stock",
            help=argparse.SUPPRESS,
            default=argparse.SUPPRESS,
        )


def read(namespace: argparse.Namespace) -> Given:
    """What `add_options` has brought. Raises ConfigError for a stock flag we cannot honour."""
    given = Given(config_file=namespace.config)
    for name, spelling, values in namespace.stock:
        reason = stock_flags.refusal(name, spelling, values)
        if reason:
            raise ConfigError(f"{spelling} is not supported: {reason}")
        given.warnings.append(stock_flags.warning(name, spelling))
    for name in OPTIONS:
        text = getattr(namespace, name)
        if isinstance(text, list):
            text = text[0] if len(text) == 1 else f"[{','.join(text)}]"
        if text is not None:
            given.values[name] = (flag(name), text)
    return given
