"""Which lmcache comes with which vLLM and Dynamo, for a worker of which only one is known."""

from collections.abc import Mapping
from dataclasses import dataclass

from connectors.versions import Package, release


@dataclass(frozen=True)
class Pair:
    """A minor release of vLLM, the lmcache of its time, and the Dynamo that pins it.

    `vllm` and `dynamo` are their first two numbers; `dynamo` is empty where none has this vLLM.
    `lmcache` are all that people run with it, the oldest first.
    """

    vllm: str
    lmcache: tuple[str, ...]
    dynamo: str = ""


# Sources: the vLLM that Dynamo's wheels 1.3.1, 1.4.2, 1.5.1 and 1.6.1 pin. The lmcache is that of
# images and reports, and partly inferred from the days on which the wheels came out.
PAIRS = (
    Pair("0.22", ("0.4.5", "0.4.6")),
    Pair("0.23", ("0.4.7",), "1.3"),
    Pair("0.24", ("0.5.0", "0.5.1")),
    Pair("0.25", ("0.5.0", "0.5.1")),
    Pair("0.26", ("0.5.2",), "1.4"),
    Pair("0.27", ("0.5.3",)),
    Pair("0.28", ("0.5.4",), "1.5"),
    Pair("0.29", ("0.5.4",)),
    Pair("0.30", ("0.5.5",)),
    Pair("0.31", ("0.5.5",), "1.6"),
    Pair("0.32", ("0.5.6",)),
    Pair("0.33", ("0.5.6",)),
)


def assumed(given: Mapping[Package, str]) -> dict[Package, str | None]:
    """What a worker has of which `given` is known: vLLM of its Dynamo, lmcache of its vLLM.

    Of several the oldest, which can do least. Packages of which nothing is known are left out.
    """
    have: dict[Package, str | None] = dict(given)
    for pair in PAIRS:
        if pair.dynamo and _is(have.get("ai-dynamo"), pair.dynamo):
            have.setdefault("vllm", f"{pair.vllm}.0")
    for pair in PAIRS:
        if _is(have.get("vllm"), pair.vllm):
            have.setdefault("lmcache", pair.lmcache[0])
    return have


def _is(version: str | None, minor: str) -> bool:
    return version is not None and release(version)[:2] == release(minor)[:2]
