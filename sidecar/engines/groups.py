"""KV groups: which layers share a block table, and what one object of a worker consists of."""

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.engines.layout import LayerLayout, Plane, UnknownLayout, fingerprint


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """A group as the engine names it; `window` in tokens, None for full attention.

    `tokens_per_block` 0 = as many as the tensors have slots.
    """

    layers: tuple[int, ...]
    tokens_per_block: int = 0
    window: int | None = None


@dataclass(frozen=True, slots=True)
class KVGroup:
    """A group with its geometry: ids `0 <= b < blocks`, `blocks_per_chunk` of them a chunk.

    `window_chunks` is how many chunks before the end of a prefix it still reads; None = all.
    """

    layers: tuple[LayerLayout, ...]
    tokens_per_block: int
    blocks_per_chunk: int
    blocks: int
    window_chunks: int | None

    def planes_by_run(self) -> dict[int, list[tuple[int, Plane]]]:
        """(tensor, plane) by length of run: the order in which a slot holds this group.

        It follows from the layout's identity alone, so workers on any device can share slots.
        """
        by_run: dict[int, list[tuple[int, Plane]]] = {}
        for layer in self.layers:
            for plane in layer.planes:
                by_run.setdefault(plane.run, []).append((layer.tensor, plane))
        return by_run


@dataclass(frozen=True, slots=True)
class WorkerLayout:
    """All groups of a worker. An object is group after group, in each the planes as
    `planes_by_run` has them, and in each plane the chunk's blocks in order: `object_bytes` in all.
    """

    groups: tuple[KVGroup, ...]
    object_bytes: int
    fingerprint: bytes


def worker_layout(
    layers: Sequence[LayerLayout], specs: Sequence[GroupSpec], chunk_size: int
) -> WorkerLayout:
    """The layout of a worker with these tensors; no specs = one group of all layers.

    Raises UnknownLayout if groups and tensors do not fit together or to `chunk_size` tokens.
    """
    specs = specs or [GroupSpec(tuple(range(len(layers))))]
    groups = tuple(_group(layers, spec, chunk_size) for spec in specs)
    object_bytes = sum(
        layer.block_bytes * group.blocks_per_chunk for group in groups for layer in group.layers
    )
    identity = [chunk_size, [_identity(group) for group in groups]]
    return WorkerLayout(groups, object_bytes, fingerprint(identity))


def _group(layers: Sequence[LayerLayout], spec: GroupSpec, chunk_size: int) -> KVGroup:
    if not spec.layers:
        raise UnknownLayout("a group without layers")
    if max(spec.layers) >= len(layers) or len(set(spec.layers)) < len(spec.layers):
        raise UnknownLayout("a group names layers that are not there, or one twice")
    members = tuple(layers[i] for i in spec.layers)
    tokens = spec.tokens_per_block or members[0].slots
    if chunk_size % tokens:
        raise UnknownLayout(f"{tokens} tokens a block do not divide the chunk size {chunk_size}")
    return KVGroup(
        layers=members,
        tokens_per_block=tokens,
        blocks_per_chunk=chunk_size // tokens,
        blocks=min(layer.blocks for layer in members),
        window_chunks=None if spec.window is None else -(-spec.window // chunk_size),
    )


def _identity(group: KVGroup) -> list[object]:
    runs = [
        (
            layer.tensor,
            layer.format_id,
            layer.dtype,
            layer.shape,
            tuple(plane.run for plane in layer.planes),
        )
        for layer in group.layers
    ]
    return [group.tokens_per_block, group.window_chunks, runs]
