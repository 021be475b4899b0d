"""One request, and what vLLM and the sidecar counted while it ran."""

import time
from dataclasses import dataclass

from .client import Completion, complete, counter
from .engine import Engine
from .sidecar import CHUNK_SIZE, Sidecar

MAX_TOKENS = 16
STORE_SECONDS = 60


@dataclass(frozen=True)
class Counts:
    """Tokens and chunks, from the counters of vLLM (`vllm_*`) and of the sidecar."""

    vllm_computed: int
    vllm_retrieved: int
    looked_up: int
    hit: int
    chunks_stored: int
    chunks_loaded: int

    def __sub__(self, before: "Counts") -> "Counts":
        return Counts(*(vars(self)[name] - vars(before)[name] for name in vars(self)))


@dataclass(frozen=True)
class Measured:
    """A completion and what it added to the counters."""

    completion: Completion
    counts: Counts

    @property
    def from_sidecar(self) -> bool:
        """Both sides say that KV came out of the sidecar."""
        counts = self.counts
        return counts.hit > 0 and counts.chunks_loaded > 0 and counts.vllm_retrieved > 0


def measure(engine: Engine, sidecar: Sidecar, prompt: str) -> Measured:
    before = read_counts(engine, sidecar)
    completion = complete(engine.url, prompt, MAX_TOKENS)
    return Measured(completion, read_counts(engine, sidecar) - before)


def read_counts(engine: Engine, sidecar: Sidecar) -> Counts:
    def of_sidecar(name: str) -> int:
        return counter(sidecar.url, f"lmcache_mp_{name}_total")

    return Counts(
        vllm_computed=counter(
            engine.url, "vllm:prompt_tokens_by_source_total", source="local_compute"
        ),
        vllm_retrieved=counter(engine.url, "vllm:external_prefix_cache_hits_total"),
        looked_up=of_sidecar("lookup_requested_tokens"),
        hit=of_sidecar("lookup_hit_tokens"),
        chunks_stored=of_sidecar("l1_write_chunks"),
        chunks_loaded=of_sidecar("l1_read_chunks"),
    )


def wait_stored(sidecar: Sidecar, prompt: str) -> int:
    """Wait until the full chunks of `prompt` are stored (vLLM does that behind the answer)."""
    wanted = len(prompt.encode()) // CHUNK_SIZE
    deadline = time.monotonic() + STORE_SECONDS
    while (stored := counter(sidecar.url, "lmcache_mp_l1_write_chunks_total")) < wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{stored} of {wanted} chunks stored after {STORE_SECONDS} s")
        time.sleep(0.1)
    return stored
