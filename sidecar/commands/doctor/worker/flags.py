"""A worker's other flags, where they contradict each other or the sidecar."""

from connectors import lmcache_v1
from sidecar.commands.doctor.finding import Finding, problem, warning
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.commands.doctor.worker.invocation import EVENTS, Invocation

_PREFIX_CACHE = "--enable-prefix-caching"
_HYBRID = "--disable-hybrid-kv-cache-manager"
_OTHER_RUNNERS = ("generate", "draft")
_CPU_BLOCK, _USUAL_BLOCK = 128, 16  # tokens, where --block-size is not given


def chunk_of_whole_blocks(worker: Invocation, around: Surroundings) -> Finding | None:
    """A chunk is made of whole blocks, of all decode-context-parallel ranks together."""
    if worker.client is None or (worker.unread and "--block-size" not in worker.options):
        return None
    block, ranks = (
        _number(worker, "--block-size"),
        _number(worker, "--decode-context-parallel-size"),
    )
    usual = _CPU_BLOCK if "cpu" in (around.installed["vllm"] or "") else _USUAL_BLOCK
    tokens = (block or usual) * (ranks or 1)
    if not around.chunk_size % tokens:
        return None
    blocks = f"{block}" if block else f"{usual}, vLLM's default here"
    return problem(
        "chunk size",
        f"chunks of {around.chunk_size} tokens, blocks of {blocks}"
        + (f" on each of {ranks} context-parallel ranks" if ranks else ""),
        "a chunk must be whole blocks, or the worker does not start",
        f"a --chunk-size of the sidecar that is a multiple of {tokens}",
    )


def events_need_the_prefix_cache(worker: Invocation, around: Surroundings) -> Finding | None:
    """Without the prefix cache there are no blocks to tell of."""
    if not (worker.publishes_events and worker.switched_off(_PREFIX_CACHE)):
        return None
    return problem(
        "--no-enable-prefix-caching",
        f"given together with {EVENTS}",
        "a worker without prefix caching publishes no KV events: the router sees nothing",
        "leave one of the two out",
    )


def lazy_offload_needs_the_prefix_cache(worker: Invocation, around: Surroundings) -> Finding | None:
    """The client refuses to start."""
    if not worker.client_extra.get("lmcache.mp.lazy_offload"):
        return None
    if not worker.switched_off(_PREFIX_CACHE):
        return None
    return problem(
        "--no-enable-prefix-caching",
        "given together with lmcache.mp.lazy_offload",
        "the client offloads what the prefix cache evicts, and ends without one",
        "leave one of the two out",
    )


def connector_flag(worker: Invocation, around: Surroundings) -> Finding | None:
    """Dynamo's old way to choose a connector."""
    if worker.program != "dynamo" or "--connector" not in worker.options:
        return None
    return problem(
        "--connector",
        "Dynamo rejects it",
        "since 1.0 it takes --kv-transfer-config alone",
        "kv-sidecar worker-args --role ROLE --model MODEL prints the command",
    )


def prefill_needs_a_config(worker: Invocation, around: Surroundings) -> Finding | None:
    """A prefill worker has to hand its KV over somehow."""
    if worker.value("--disaggregation-mode") != "prefill":
        return None
    if worker.unread or "--kv-transfer-config" in worker.options:
        return None
    return problem(
        "--disaggregation-mode prefill",
        "without --kv-transfer-config",
        "Dynamo does not start it: nothing would bring the prompt to a decode worker",
        "kv-sidecar connector --role prefill",
    )


def hybrid_manager(worker: Invocation, around: Surroundings) -> Finding | None:
    """LMCache inside the worker cannot do with several KV groups."""
    if worker.connector(lmcache_v1.NAME) is None or not worker.switched_off(_HYBRID):
        return None
    return problem(
        f"--no-{_HYBRID.removeprefix('--')}",
        f"given together with {lmcache_v1.NAME}",
        "that connector knows one KV group",
        f"leave it out; {_HYBRID} is what it needs",
    )


def sleep_mode(worker: Invocation, around: Surroundings) -> Finding | None:
    """Memory of vLLM's own allocator cannot be shared by CUDA's usual handles."""
    if worker.client is None or not worker.switched_on("--enable-sleep-mode"):
        return None
    return warning(
        "--enable-sleep-mode",
        "given",
        "on a GPU the sidecar cannot map a KV cache that vLLM's sleeping allocator made",
        'leave it out, or "lmcache.mp.mp_transfer_mode": "engine_driven"',
    )


def pooling(worker: Invocation, around: Surroundings) -> Finding | None:
    """Poolers that vLLM gives no cached prefix of its own, and loads one for."""
    named = [name for name in ("--runner", "--convert", "--pooler-config") if worker.value(name)]
    if worker.client is None or not named or worker.value("--runner") in _OTHER_RUNNERS:
        return None
    return warning(
        f"{named[0]} {worker.value(named[0])}",
        "the KV of pooling models is loaded too",
        "MEAN, CLS and STEP pooling need every token of a prompt: where a part of it is loaded, "
        "vLLM raises, and ends",
        "use no --kv-transfer-config for such a model",
    )


def _number(worker: Invocation, name: str) -> int | None:
    text = worker.value(name) or ""
    return int(text) if text.isdecimal() and int(text) else None


CHECKS = (
    chunk_of_whole_blocks,
    events_need_the_prefix_cache,
    lazy_offload_needs_the_prefix_cache,
    connector_flag,
    prefill_needs_a_config,
    hybrid_manager,
    sleep_mode,
    pooling,
)
