"""A real vLLM on the GPU: what it loads gives the tokens that it computed."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from connectors import roles
from connectors.lmcache_mp import CacheServer
from examples.counters import counter
from examples.demo.client import complete
from examples.demo.engine import Engine, start_engine
from examples.demo.process import ProcessFailed
from tests.e2e.conftest import CHUNK_SIZE, ask, model, no_segments_left, prompt
from tests.support.server import Server, wait_until
from tests.support.tiny_models import make_hybrid_model, make_latent_model

__all__ = ["model"]

pytestmark = [pytest.mark.gpu, pytest.mark.engine]

BLOCK_TOKENS, MAX_TOKENS = 16, 2048
# Enough for one request of MAX_TOKENS, and so few that requests are preempted. A hybrid model's
# takes 99 when it is loaded and 114 at its end: four are begun, and do not fit in the end.
BLOCKS = {"plain": 160, "latent": 160, "hybrid": 425}
# One token more than whole chunks, and than whole blocks: vLLM's own cache and the sidecar have
# the same tokens, and the same single one is left to compute.
PROMPT = 3 * CHUNK_SIZE + 1
FP8_CAPABILITY = (8, 9)


@dataclass(frozen=True)
class Case:
    backend: str
    kind: str = "plain"
    gpus: int = 1
    kv_dtype: str = "auto"

    @property
    def is_exact(self) -> bool:
        """Tokens do not depend on how a prompt was cut into steps.

        So it is in float32, which of all these only Triton's attention has.
        """
        return (self.backend, self.kv_dtype) == ("TRITON_ATTN", "auto")

    def __str__(self) -> str:
        return "-".join([self.backend, self.kind, self.kv_dtype, str(self.gpus)])


ONE_GPU = Case("TRITON_ATTN")
CASES = [
    ONE_GPU,
    Case("TRITON_ATTN", gpus=2),
    Case("FLASH_ATTN"),
    Case("FLASHINFER"),
    Case("TRITON_ATTN", kv_dtype="fp8"),
    Case("TRITON_ATTN", kind="hybrid"),
    Case("TRITON_MLA", kind="latent"),
    Case("TRITON_MLA", kind="latent", kv_dtype="fp8"),
]


def flags(case: Case) -> list[str]:
    return [
        *("--dtype", "float32" if case.is_exact else "bfloat16"),
        *("--attention-backend", case.backend, "--kv-cache-dtype", case.kv_dtype),
        *("--tensor-parallel-size", str(case.gpus)),
        *("--enable-prefix-caching", "--gpu-memory-utilization", "0.2"),
        *("--block-size", str(BLOCK_TOKENS)),
        *("--max-model-len", str(MAX_TOKENS), "--num-gpu-blocks-override", str(BLOCKS[case.kind])),
        *(["--no-disable-hybrid-kv-cache-manager"] if case.kind == "hybrid" else []),
    ]


@dataclass(frozen=True)
class Setup:
    server: Server
    engine: Engine
    case: Case

    def ask(self, text: str, tokens: int = 12) -> tuple[int, ...]:
        """The tokens that a prompt is completed with."""
        return complete(self.engine.url, text, tokens).token_ids

    def ask_new(self, text: str, tokens: int = 12) -> tuple[int, ...]:
        """The same for a prompt that nobody knows, once the sidecar has it."""
        before = self._stored()
        answer = self.ask(text, tokens)
        whole = len(text) // CHUNK_SIZE * self.case.gpus
        wait_until(lambda: self._stored() >= before + whole, "the prompt stored")
        return answer

    def forget(self) -> None:
        """Empty vLLM's own cache."""
        request = urllib.request.Request(f"{self.engine.url}/reset_prefix_cache", method="POST")

        def is_reset() -> bool:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return bool(json.load(reply)["success"])

        wait_until(is_reset, "vLLM's own cache is empty")

    def count(self, what: str) -> int:
        return counter(self.engine.url, f"vllm:{what}_total")

    def _stored(self) -> float:
        return self.server.metrics().total("lmcache_mp_l1_write_chunks_total")


@contextmanager
def vllm(server: Server, model: Path, log: Path, case: Case, *more: str) -> Iterator[Engine]:
    """A vLLM beside `server`, with its endpoints for development. Raises ProcessFailed."""
    client = CacheServer(port=server.port, heartbeat_seconds=1, timeout_seconds=10)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_SERVER_DEV_MODE", "1")
        options = [*flags(case), *more]
        engine = start_engine(model, roles.aggregated(client), log, more=options)
    try:
        yield engine
    finally:
        with no_segments_left(engine):
            engine.process.stop()


@pytest.fixture(scope="module", autouse=True)
def needs_vllm_for_cuda() -> None:
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vLLM is not installed")
    if "cpu" in version:
        pytest.skip("this vLLM is the CPU build")


@pytest.fixture(scope="session")
def models(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "plain": model,
        "hybrid": make_hybrid_model(folder / "hybrid"),
        "latent": make_latent_model(folder / "latent"),
    }


def missing(case: Case) -> str | None:
    """What this machine lacks for it."""
    if case.gpus > torch.cuda.device_count():
        return f"needs {case.gpus} GPUs"
    if case.backend == "FLASHINFER" and shutil.which("nvcc") is None:
        return "FlashInfer compiles its kernels with nvcc"
    if case.kv_dtype == "fp8" and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        return "Triton has fp8 from compute capability 8.9 on"
    return None


@pytest.fixture(scope="module", params=CASES, ids=str)
def setup(
    request: pytest.FixtureRequest,
    models: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Setup]:
    """Costs the start of an engine, so the tests share it."""
    case: Case = request.param
    reason = missing(case)
    if reason is not None:
        pytest.skip(reason)
    logs = tmp_path_factory.mktemp(str(case))
    server = Server(logs, l1_size_gb=2, chunk_size=CHUNK_SIZE)
    try:
        server.start()
        with vllm(server, models[case.kind], logs / "vllm.log", case) as engine:
            yield Setup(server, engine, case)
    finally:
        server.stop()


def test_loaded_tokens_equal_those_of_vllm_s_own_cache(setup: Setup) -> None:
    """And in float32 those of a prompt that was computed in one piece."""
    texts = [prompt(f"Kappa{i}", PROMPT) for i in range(4)]
    for text in texts:
        computed = setup.ask_new(text)
        own, loaded = setup.count("prefix_cache_hits"), setup.count("external_prefix_cache_hits")
        cached = setup.ask(text)
        assert setup.count("prefix_cache_hits") - own == PROMPT - 1
        assert setup.count("external_prefix_cache_hits") == loaded
        setup.forget()
        assert setup.ask(text) == cached
        assert setup.count("external_prefix_cache_hits") - loaded == PROMPT - 1
        assert not setup.case.is_exact or cached == computed
    setup.server.assert_no_leases()


def test_preempted_requests_get_the_same_tokens(setup: Setup) -> None:
    """Six that do not fit together: blocks are taken away from requests that are under way."""
    if not setup.case.is_exact:
        pytest.skip("only in float32 are tokens the same in any batch")
    texts = [prompt(f"Lambda{i}", PROMPT) for i in range(6)]
    alone = [setup.ask_new(text, 250) for text in texts]
    setup.forget()
    preempted = setup.count("num_preemptions")
    for _ in range(3):
        with ThreadPoolExecutor(len(texts)) as pool:
            together = list(pool.map(lambda text: setup.ask(text, 250), texts))
        assert together == alone
    assert setup.count("num_preemptions") > preempted
    setup.server.assert_no_leases()


def test_sleep_mode_is_refused(
    model: Path, tmp_path: Path, new_server: Callable[..., Server]
) -> None:
    """CUDA IPC cannot share its memory: vLLM does not start, or it computes what it would load."""
    server, log = new_server(chunk_size=CHUNK_SIZE).start(), tmp_path / "vllm.log"
    text = prompt("Mu", PROMPT)
    try:
        with vllm(server, model, log, ONE_GPU, "--enable-sleep-mode") as engine:
            assert ask(engine, text).token_ids == ask(engine, text).token_ids
            assert counter(engine.url, "vllm:external_prefix_cache_hits_total") == 0
    except ProcessFailed:
        assert "CUDA error" in log.read_text()
    assert server.healthy()
    assert not server.instances()
    assert server.metrics().total("lmcache_mp_l1_write_chunks_total") == 0
