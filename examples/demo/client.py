"""What a client of vLLM sees: streamed completions."""

import json
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

from .engine import MODEL_NAME


@dataclass(frozen=True)
class Completion:
    """One greedy completion; seconds count from the moment the request was sent."""

    text: str
    token_ids: tuple[int, ...]
    first_token_seconds: float


def request_body(
    prompt: str, max_tokens: int, *, stream: bool, fields: Mapping[str, str] | None = None
) -> bytes:
    """The JSON of a request; `fields` take the place of the usual ones."""
    return json.dumps(
        {
            "model": MODEL_NAME,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": stream,
            "return_token_ids": True,
            **(fields or {}),
        }
    ).encode()


def complete(
    url: str,
    prompt: str,
    max_tokens: int,
    timeout: float = 300,
    fields: Mapping[str, str] | None = None,
) -> Completion:
    """Send `prompt` to the vLLM at `url` and read the stream to its end."""
    request = urllib.request.Request(
        f"{url}/v1/completions",
        request_body(prompt, max_tokens, stream=True, fields=fields),
        {"Content-Type": "application/json"},
    )
    started = time.monotonic()
    first_token_seconds = None
    text = ""
    token_ids: list[int] = []
    with urllib.request.urlopen(request, timeout=timeout) as stream:
        for line in stream:
            if not line.startswith(b"data: {"):
                continue
            choice = json.loads(line.removeprefix(b"data: "))["choices"][0]
            if first_token_seconds is None and choice["token_ids"]:
                first_token_seconds = time.monotonic() - started
            text += choice["text"]
            token_ids += choice["token_ids"] or []
    if first_token_seconds is None:
        raise RuntimeError(f"{url} ended the stream without a token")
    return Completion(text, tuple(token_ids), first_token_seconds)
