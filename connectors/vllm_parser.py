"""A program for a worker's interpreter: vLLM's own parser on the arguments after `vllm serve`.

Reads a JSON list from stdin. Prints `{"tokens": [...], "refused": "..."}`: the arguments with the
file of --config and dotted options written out and shortened names in full, and why vLLM would
not start with them, where that is so.
"""

import argparse
import json
import sys
from typing import Any, NoReturn

from vllm.utils.argparse_utils import FlexibleArgumentParser

try:
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
except ImportError:  # before vLLM 0.32
    from vllm.entrypoints.openai.cli_args import make_arg_parser


class Parser(FlexibleArgumentParser):  # type: ignore[misc]
    """Keeps what argparse gets once vLLM has rewritten it."""

    tokens: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Without the subcommand, which another parser takes.
        self.tokens = tuple(self._in_full(token) for token in args[1:])
        return super().parse_known_args(self.tokens, namespace)

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def _in_full(self, token: str) -> str:
        flag, equals, value = token.partition("=")
        if not flag.startswith("--") or flag in self._option_string_actions:
            return token
        known = {name for name in self._option_string_actions if name.startswith(flag)}
        return f"{known.pop()}{equals}{value}" if len(known) == 1 else token


def main() -> None:
    parser = make_arg_parser(Parser(add_help=False))
    refused = ""
    try:
        parser.parse_args(["serve", *json.load(sys.stdin)])
    except (ValueError, AssertionError, OSError, argparse.ArgumentError) as error:
        refused = " ".join(str(error).split()) or type(error).__name__
    print(json.dumps({"tokens": parser.tokens, "refused": refused}))


if __name__ == "__main__":
    main()
