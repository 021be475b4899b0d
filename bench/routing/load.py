"""Four users of ten turns each, and the other prompts that pass through both GPUs meanwhile."""

from __future__ import annotations

import json
import string
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from random import Random

from bench.common import BenchError
from bench.routing.nodes import COUNT, MODEL, Cluster
from examples.counters import vllm_counts

USERS, TURNS = 4, 10
FIRST_TOKENS, MORE_TOKENS = 2000, 200  # of a user's first prompt; of each turn behind it
ANSWER_TOKENS = 16
# As long as a GPU's cache: at most a block is left there of what was before.
OTHER_TOKENS = 4000
_ANSWER_SECONDS = 180
_ATTEMPTS = 5


@dataclass(frozen=True)
class Answer:
    """The worker that a request went to, and the seconds until its first token."""

    worker: int
    seconds: float


@dataclass(frozen=True)
class Turn:
    """The answers by user, and where the tokens of their prompts came from.

    `tokens` has the fields of examples.counters.VllmCounts.
    """

    answers: tuple[Answer, ...]
    tokens: dict[str, int]


def prompt(topic: str, tokens: int) -> str:
    """Random letters, each a token; a longer prompt of a topic begins with each shorter one."""
    return "".join(Random(topic).choices(string.ascii_lowercase, k=tokens))


def ask(url: str, text: str) -> Answer:
    body = {
        "model": MODEL,
        "prompt": text,
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "nvext": {"extra_fields": ["worker_id"]},
    }
    request = urllib.request.Request(
        f"{url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began, answer = time.monotonic(), None
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as stream:
        for line in stream:
            if answer is None and line.startswith(b"data: {"):
                chunk = json.loads(line.removeprefix(b"data: "))
                worker = chunk["nvext"]["worker_id"]["decode_worker_id"]
                answer = Answer(worker, time.monotonic() - began)
    if answer is None:
        raise BenchError("an answer without a token")
    return answer


def converse(cluster: Cluster, at_once: int) -> Iterator[Turn]:
    """All users ask in each turn, in an order that changes, `at_once` of them at a time."""
    order = Random(0)
    for turn in range(TURNS):
        if turn:
            pass_others(cluster, f"{turn}, {at_once} at once")
        users = order.sample(range(USERS), USERS)
        tokens = FIRST_TOKENS + turn * MORE_TOKENS
        before = _counts(cluster)
        with ThreadPoolExecutor(at_once) as pool:
            texts = [prompt(f"user {user}, {at_once} at once", tokens) for user in users]
            answers = [*pool.map(ask, [cluster.url] * USERS, texts)]
        by_user = dict(zip(users, answers, strict=True))
        yield Turn(tuple(by_user[user] for user in range(USERS)), dict(_counts(cluster) - before))


def pass_others(cluster: Cluster, topic: str) -> None:
    """Another prompt through each GPU: of two at once each of two workers gets one, but for chance.

    Raises BenchError where one worker gets none of many.
    """
    workers: set[int] = set()
    for attempt in range(_ATTEMPTS):
        texts = [prompt(f"other {topic}, {attempt}, {i}", OTHER_TOKENS) for i in range(COUNT)]
        with ThreadPoolExecutor(COUNT) as pool:
            workers |= {answer.worker for answer in pool.map(ask, [cluster.url] * COUNT, texts)}
        if len(workers) == COUNT:
            return
    raise BenchError(f"of {COUNT * _ATTEMPTS} prompts, {COUNT} at once, one worker got none")


def _counts(cluster: Cluster) -> Counter[str]:
    """Prompt tokens of both workers so far, by where they came from."""
    counts = (Counter(asdict(vllm_counts(node.worker))) for node in cluster.nodes)
    return sum(counts, Counter())
