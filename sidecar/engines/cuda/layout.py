"""What a child is told of a worker: which allocations, and where in them the planes lie."""

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.engines.cuda.protocol import Allocation, Map, Planes
from sidecar.engines.groups import WorkerLayout


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor's storage lies: `offset` bytes into the allocation `handle`.

    `counter` is torch's reference counter of this share: (file, index).
    """

    handle: bytes
    offset: int
    counter: tuple[str, int] | None = None


def map_order(worker: int, layout: WorkerLayout, tensors: Sequence[Tensor]) -> Map:
    """The order by which a child maps `tensors`, of which `layout` tells the blocks."""
    handles = list(dict.fromkeys(tensor.handle for tensor in tensors))
    index = {handle: i for i, handle in enumerate(handles)}
    reach = dict.fromkeys(handles, 0)
    groups: list[list[Planes]] = []
    for group in layout.groups:
        groups.append([])
        for run, planes in group.planes_by_run().items():
            placed = []
            for number, plane in planes:
                handle, start = tensors[number].handle, tensors[number].offset + plane.base
                end = start + (group.blocks - 1) * plane.stride + run
                reach[handle] = max(reach[handle], end)
                placed.append((index[handle], start, plane.stride))
            groups[-1].append(Planes(run, placed))
    counters = {h: [t.counter for t in tensors if t.handle == h and t.counter] for h in handles}
    return Map(worker, [Allocation(h, reach[h], counters[h]) for h in handles], groups)
