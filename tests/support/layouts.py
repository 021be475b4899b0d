"""KV caches of every layout that can be told apart from shapes and hints, filled at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

torch = pytest.importorskip("torch", reason="the stock client needs torch")
pytest.importorskip("lmcache", reason="the stock client is not installed")

from lmcache.v1.multiprocess.group_view import EngineGroupInfo  # noqa: E402

BLOCKS, SLOTS, HEADS, SIZE, LAYERS = 48, 16, 2, 8, 3

Shape = Callable[[int, int, int, int], tuple[int, ...]]


@dataclass(frozen=True)
class Layout:
    """One row of the format table; `shape` takes blocks, slots, heads and head size."""

    name: str
    format_id: int
    hint: str | None
    shape: Shape
    block_axis: int = 0
    dtype: str = "float16"


LAYOUTS = (
    Layout("fused-hnd", 12, "HND", lambda nb, bs, nh, hs: (nb, nh, bs, 2 * hs)),
    Layout("fused-blhnc", 12, "BLHNC", lambda nb, bs, nh, hs: (nb, nh, bs, 2 * hs)),
    Layout("fused-nhd", 13, "NHD", lambda nb, bs, nh, hs: (nb, bs, nh, 2 * hs)),
    Layout("fused-blnhc", 13, "BLNHC", lambda nb, bs, nh, hs: (nb, bs, nh, 2 * hs)),
    Layout("kv-first-nhd", 1, "NHD", lambda nb, bs, nh, hs: (2, nb, bs, nh, hs), 1),
    Layout("kv-second-nhd", 2, "NHD", lambda nb, bs, nh, hs: (nb, 2, bs, nh, hs)),
    Layout("kv-first-hnd", 6, "HND", lambda nb, bs, nh, hs: (2, nb, nh, bs, hs), 1),
    Layout("kv-second-hnd", 7, "HND", lambda nb, bs, nh, hs: (nb, 2, nh, bs, hs)),
    Layout("mla", 3, None, lambda nb, bs, nh, hs: (nb, bs, nh * hs)),
    Layout("indexer", 14, None, lambda nb, bs, nh, hs: (nb, bs, 132), dtype="uint8"),
    Layout("indexer-hnd", 14, "HND", lambda nb, bs, nh, hs: (nb, 1, bs, 132), dtype="uint8"),
)
_BY_NAME = {layout.name: layout for layout in LAYOUTS}
FUSED, FUSED_NHD, MLA = _BY_NAME["fused-hnd"], _BY_NAME["fused-nhd"], _BY_NAME["mla"]
KV_FIRST_NHD, KV_FIRST_HND = _BY_NAME["kv-first-nhd"], _BY_NAME["kv-first-hnd"]


def random_tensor(shape: Sequence[int], dtype: str, seed: int) -> torch.Tensor:
    """Random bytes seen as `dtype`: NaN patterns and denormals included."""
    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(seed)
    width = shape[-1] * kind.itemsize
    raw = torch.randint(0, 256, (*shape[:-1], width), dtype=torch.uint8, generator=generator)
    return raw.view(kind)


def raw_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the tensor's elements as bytes, the last axis widened."""
    return tensor.contiguous().view(torch.uint8).clone()


@dataclass
class Group:
    """Layers that share one space of block ids."""

    layers: list[str]
    block_axis: int = 0
    tokens_per_block: int = SLOTS
    window: int = -1


@dataclass
class KVCache:
    """What a worker registers: tensors by layer name, the hint, and the groups (at least one)."""

    tensors: dict[str, torch.Tensor]
    hint: str | None
    groups: list[Group]
    announce_groups: bool = field(default=False)

    @property
    def hints(self) -> dict[str, str]:
        return {"kv_layout": self.hint} if self.hint else {}

    def infos(self) -> list[EngineGroupInfo]:
        """The group list that goes over the wire: empty for one plain group."""
        if not self.announce_groups:
            return []
        names = list(self.tensors)
        return [
            EngineGroupInfo(
                engine_group_id=number,
                layer_indices=tuple(names.index(layer) for layer in group.layers),
                tokens_per_block=group.tokens_per_block,
                sw_size_tokens=group.window,
            )
            for number, group in enumerate(self.groups)
        ]

    def image(self) -> dict[str, torch.Tensor]:
        """Every byte of the cache, block axis first, by layer."""
        return {
            layer: raw_bytes(self.tensors[layer]).movedim(group.block_axis, 0)
            for group in self.groups
            for layer in group.layers
        }

    def wipe(self, blocks: Sequence[Sequence[int]]) -> None:
        """Zero the given blocks of each group."""
        for group, ids in zip(self.groups, blocks, strict=True):
            for layer in group.layers:
                view = self.tensors[layer].movedim(group.block_axis, 0).view(torch.uint8)
                view[torch.tensor(list(ids), dtype=torch.long)] = 0


def one_group(layout: Layout, *, dtype: str | None = None, seed: int = 0, **dims: int) -> KVCache:
    """A cache of one group in `layout`."""
    size = {"blocks": BLOCKS, "slots": SLOTS, "heads": HEADS, "size": SIZE, "layers": LAYERS}
    size |= dims
    shape = layout.shape(size["blocks"], size["slots"], size["heads"], size["size"])
    kind = dtype or layout.dtype
    tensors = {
        f"layer.{i}": random_tensor(shape, kind, seed * 100 + i) for i in range(size["layers"])
    }
    return KVCache(tensors, layout.hint, [Group(list(tensors), layout.block_axis, size["slots"])])


def merge(*caches: KVCache) -> KVCache:
    """Several one-group caches as one cache of several announced groups (hint of the first)."""
    tensors: dict[str, torch.Tensor] = {}
    groups: list[Group] = []
    for number, cache in enumerate(caches):
        (group,) = cache.groups
        renamed = {f"group{number}.{name}": tensor for name, tensor in cache.tensors.items()}
        tensors |= renamed
        groups.append(Group(list(renamed), group.block_axis, group.tokens_per_block, group.window))
    return KVCache(tensors, caches[0].hint, groups, announce_groups=True)
