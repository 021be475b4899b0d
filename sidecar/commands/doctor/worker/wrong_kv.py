"""Workers that would store KV, or load it, that is not that of their request."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from connectors import hazards, lmcache_mp
from connectors.hazards import Hazard, Options
from connectors.model_file import is_latent, is_multimodal, is_recurrent
from sidecar.commands.doctor.finding import Finding, ok, problem
from sidecar.commands.doctor.surroundings import Surroundings
from sidecar.commands.doctor.worker.invocation import Invocation

# What decides KV, beside the tokens, and is neither in the client's keys nor in the layout that
# a worker registers.
_WEIGHTS = (
    "--hf-overrides", "--hf-config-path", "--revision", "--code-revision", "--quantization",
    "--quantization-config", "--load-format", "--model-class-overrides", "--kv-cache-dtype",
    "--kv-cache-dtype-skip-layers", "--calculate-kv-scales", "--cp-kv-cache-interleave-size",
    "--dcp-kv-cache-interleave-size",
)  # fmt: skip


def adapters(worker: Invocation, around: Surroundings) -> Finding | None:
    """KV of one LoRA adapter for the requests of another."""
    return _of_options(worker, around, hazards.adapters)


def embeddings(worker: Invocation, around: Surroundings) -> Finding | None:
    """KV of one prompt embedding for another of its length."""
    return _of_options(worker, around, hazards.embeddings)


def counted_images(worker: Invocation, around: Surroundings) -> Finding | None:
    """KV of one image for another of its number."""
    return _of_options(worker, around, hazards.counted_images)


def latent_on_a_cpu(worker: Invocation, around: Surroundings) -> Finding | None:
    """Memory that is shared, and other memory that is used."""
    if worker.client is None or not is_latent(worker.model):
        return None
    found = hazards.of_latent_model(worker.transfer_mode, around.installed)
    if found is None:
        return None
    return _finding(replace(found, do=f'"{lmcache_mp.TRANSFER_MODE}": "engine_driven"'))


def images(worker: Invocation, around: Surroundings) -> Finding | None:
    """KV of one image for another, by clients whose keys do not hold images."""
    if not is_multimodal(worker.model):
        return None
    return _of_options(worker, around, lambda options: hazards.of_images(options, around.installed))


def recurrent(worker: Invocation, around: Surroundings) -> Finding | None:
    """Recurrent state, by clients that do not say which layers have it."""
    if not is_recurrent(worker.model):
        return None
    return _of_options(worker, around, lambda _: hazards.of_recurrent_model(around.installed))


def same_weights(worker: Invocation) -> Iterator[Finding]:
    """Options that workers of one model name must have in common."""
    given = [name for name in _WEIGHTS if name in worker.options]
    if worker.client and given:
        yield ok(
            "model",
            f"{', '.join(given)}: no part of the cache's keys; right if all workers that use this "
            "sidecar under one model name have the same",
        )


def _of_options(
    worker: Invocation, around: Surroundings, look: Callable[[Options], Hazard | None]
) -> Finding | None:
    found = look(worker.options) if worker.client else None
    if found is None or (around.salted_requests and found.salts_help):
        return None
    return _finding(found)


def _finding(hazard: Hazard) -> Finding:
    return problem(hazard.what, "wrong KV is loaded", hazard.why, hazard.do)


CHECKS = (adapters, embeddings, counted_images, latent_on_a_cpu, images, recurrent)
