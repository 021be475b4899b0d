"""How much KV a model makes, and how much of it an L1 holds. Pure arithmetic."""

from dataclasses import dataclass

from connectors.errors import ConnectorError
from connectors.model_config import Attention, Model

ITEM_BYTES = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "fp8": 1,
    "fp8_e4m3": 1,
    "fp8_e5m2": 1,
}
KV_DTYPES = ("auto", *(name for name in ITEM_BYTES if name != "float32"))
# What an object in the arena is rounded up to (`sidecar.cache.arena.ALIGNMENT`).
ALIGNMENT = 4096
_SCALE_GROUP, _SCALE_BYTES = 128, 4


@dataclass(frozen=True)
class KVSize:
    """The KV of one token, in bytes, on each of the `ranks` that keep a part of their own.

    `windowed` is the share of it that belongs to layers with a window: the engine keeps those
    for the window alone, the sidecar for every token.
    """

    ranks: int
    rank_bytes: int
    windowed: int

    @property
    def token_bytes(self) -> int:
        """Of all ranks."""
        return self.ranks * self.rank_bytes

    def chunk_bytes(self, chunk_size: int) -> int:
        """What a chunk of `chunk_size` tokens takes in the L1, all ranks."""
        return self.ranks * -(-self.rank_bytes * chunk_size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class Fit:
    """What an L1 holds. `prompts` is None where a prompt is shorter than a chunk."""

    tokens: int
    prompts: int | None


def kv_size(model: Model, kv_dtype: str = "auto", tp: int = 1) -> KVSize:
    """The KV of one token on `tp` tensor-parallel ranks.

    Fewer KV heads than ranks are replicated, one on each rank. A latent (MLA) is the same on all
    ranks and kept once.

    Raises ConnectorError for a number of ranks or a dtype that cannot work.
    """
    item = ITEM_BYTES.get(model.dtype if kv_dtype == "auto" else kv_dtype)
    if item is None:
        raise ConnectorError(f"the model's dtype {model.dtype!r} is unknown; give --kv-cache-dtype")
    layer_bytes = [
        (group, group.layers * (_heads(group, tp) * _head_bytes(model, group, item)))
        for group in model.attention
    ]
    return KVSize(
        ranks=1 if model.latent else tp,
        rank_bytes=sum(size for _, size in layer_bytes),
        windowed=sum(size for group, size in layer_bytes if group.window),
    )


def fit(size: KVSize, l1_bytes: int, chunk_size: int, prompt_tokens: int) -> Fit:
    """What `l1_bytes` hold; of a prompt only whole chunks are kept."""
    chunks = l1_bytes // size.chunk_bytes(chunk_size)
    per_prompt = prompt_tokens // chunk_size
    return Fit(chunks * chunk_size, chunks // per_prompt if per_prompt else None)


def _heads(group: Attention, tp: int) -> int:
    """On each rank, as vLLM's `ModelConfig.get_num_kv_heads` counts them."""
    return max(1, group.kv_heads // tp)


def _head_bytes(model: Model, group: Attention, item: int) -> int:
    if model.rope_elements and item == 1:
        # vLLM's fp8_ds_mla: fp8 with a scale for each 128 elements, the rope part as it is.
        quantized = group.elements - model.rope_elements
        scales = quantized // _SCALE_GROUP * _SCALE_BYTES
        return quantized + scales + 2 * model.rope_elements + model.indexer_bytes
    return group.elements * item + model.indexer_bytes
