"""One request, and what vLLM and the sidecar counted while it ran."""

from dataclasses import dataclass

from examples.counters import SidecarCounts, VllmCounts, sidecar_counts, vllm_counts

from .client import Completion, complete
from .engine import Engine
from .sidecar import Sidecar

MAX_TOKENS = 16


@dataclass(frozen=True)
class Measured:
    """A completion and what it added to the counters."""

    completion: Completion
    vllm: VllmCounts
    sidecar: SidecarCounts

    @property
    def from_sidecar(self) -> bool:
        """Both sides say that KV came out of the sidecar."""
        return min(self.sidecar.hit, self.sidecar.chunks_loaded, self.vllm.transferred) > 0


def measure(engine: Engine, sidecar: Sidecar, prompt: str) -> Measured:
    vllm, cache = vllm_counts(engine.url), sidecar_counts(sidecar.url)
    completion = complete(engine.url, prompt, MAX_TOKENS)
    return Measured(completion, vllm_counts(engine.url) - vllm, sidecar_counts(sidecar.url) - cache)
