"""A chat of several turns through the OpenAI client, and what the sidecar found at each.

    python -m examples.chat --base-url http://127.0.0.1:8000/v1
    python -m examples.chat "Which rooms are on floor 3?" "And which of them is the largest?"

Each turn sends the whole conversation again: all but its end can come from a cache. `cached` is
what the server reports of it (vLLM does with --enable-prompt-tokens-details), vLLM's own prefix
cache included. `looked up` and `found` are tokens, in whole chunks, by the sidecar's counters.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from openai import OpenAI, OpenAIError

from examples.counters import sidecar_counts
from examples.usage import Parser

# Long enough for some whole chunks in front of each conversation.
SYSTEM = "You know the rooms of a house. Answer in a sentence.\n" + "".join(
    f"Room {i}: floor {i // 5 + 1}, {12 + i * i % 31} square metres.\n" for i in range(30)
)
QUESTIONS = (
    "Which rooms are on floor 3?",
    "Which of them is the largest?",
    "How much larger is it than room 1?",
    "And what is on floor 4?",
)
ROW = "{:<6}{:>10}{:>10}{:>12}{:>10}{:>14}  {}"


@dataclass(frozen=True)
class Reply:
    """The answer of one turn; None is what the server did not tell."""

    text: str
    prompt_tokens: int | None
    cached_tokens: int | None
    first_token_seconds: float


def ask(client: OpenAI, model: str, messages: Sequence[Any], max_tokens: int) -> Reply:
    """Send the conversation, and read the stream of the answer to its end."""
    started = time.monotonic()
    stream = client.chat.completions.create(
        model=model,
        messages=list(messages),
        max_tokens=max_tokens,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    text, usage, seconds = "", None, 0.0
    for chunk in stream:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            if choice.delta.content:
                seconds = seconds or time.monotonic() - started
                text += choice.delta.content
    details = usage.prompt_tokens_details if usage else None
    cached = details.cached_tokens if details else None
    return Reply(text, usage.prompt_tokens if usage else None, cached, seconds)


def chat(client: OpenAI, model: str, given: argparse.Namespace) -> None:
    """Ask the questions in turn, and print a line for each."""
    print(ROW.format("turn", "prompt", "cached", "looked up", "found", "first token", "answer"))
    messages = [{"role": "system", "content": SYSTEM}]
    for turn, question in enumerate(given.question or QUESTIONS, start=1):
        messages.append({"role": "user", "content": question})
        before = sidecar_counts(given.sidecar_url)
        reply = ask(client, model, messages, given.max_tokens)
        cache = sidecar_counts(given.sidecar_url) - before
        messages.append({"role": "assistant", "content": reply.text})
        counts = (reply.prompt_tokens, reply.cached_tokens, cache.looked_up, cache.hit)
        columns = ["-" if count is None else f"{count:,}" for count in counts]
        seconds = f"{reply.first_token_seconds:.2f} s"
        print(ROW.format(turn, *columns, seconds, repr(reply.text)[:40]), flush=True)


def main() -> int:
    parser = Parser(__doc__)
    parser.add_sidecar_url()
    parser.add_argument("question", nargs="*", help="one for each turn (default: four of its own)")
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1", help="%(default)s")
    parser.add_argument("--model", help="default: the first that the server lists")
    parser.add_argument("--api-key", default="none", help="where the server wants one")
    parser.add_count("--max-tokens", 48, "of an answer")
    given = parser.parse_args()
    parser.check(sidecar_counts, given.sidecar_url)
    client = OpenAI(base_url=given.base_url, api_key=given.api_key, max_retries=0, timeout=300)
    try:
        models = [model.id for model in client.models.list()]
    except OpenAIError as error:
        parser.error(f"{given.base_url}: {error}")
    if given.model not in (None, *models):
        parser.error(f"{given.base_url} serves {', '.join(models)} and not {given.model}")
    try:
        chat(client, given.model or models[0], given)
    except OpenAIError as error:
        sys.exit(f"{parser.prog}: {given.base_url}: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
