"""A worker's arguments as vLLM reads them, where plain reading does not see them all."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from connectors.errors import ConnectorError

_PARSER = Path(__file__).with_name("vllm_parser.py")
# It imports vLLM, and with it PyTorch.
_TIMEOUT_SECONDS = 240.0
# `--config FILE`, `--kv-transfer-config.kv_connector NAME`
_HIDDEN = re.compile(r"--config|--[A-Za-z][\w-]*\..+")


class NotChecked(ConnectorError):
    """vLLM's parser could not be asked; the text is the reason."""


def hidden(tokens: Sequence[str]) -> bool:
    """Whether a file or dotted options say more than the tokens themselves."""
    return any(_HIDDEN.fullmatch(token.partition("=")[0]) for token in tokens)


def written_out(
    tokens: Sequence[str], vllm_only: bool = True, python: str = sys.executable
) -> tuple[str, ...]:
    """The same arguments with all that is hidden written out, by the vLLM of `python`.

    With `vllm_only` False options that vLLM does not know are another program's (Dynamo's).

    Raises NotChecked where there is no such vLLM (no `python`: the worker runs elsewhere), and
    ConnectorError with vLLM's reason where it refuses the arguments.
    """
    if not python:
        raise NotChecked("the worker runs somewhere else")
    try:
        done = subprocess.run(
            # -P: what is called like our modules beside the program (nixl) is another's.
            [python, "-P", str(_PARSER)],
            input=json.dumps(list(tokens)),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
        )
        told = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError) as error:
        raise NotChecked(f"{python} has no vLLM whose parser answers") from error
    refused = str(told["refused"])
    if refused and (vllm_only or not refused.startswith("unrecognized arguments")):
        raise ConnectorError(f"vLLM refuses these arguments: {refused}")
    return tuple(told["tokens"])
