"""What a child is told of a worker: which allocations, and where in them the planes lie."""

from collections.abc import Sequence
from dataclasses import dataclass

from sidecar.engines.cuda.protocol import Allocation, Map, Planes
from sidecar.engines.cuda.shares import Share
from sidecar.engines.groups import WorkerLayout


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor's storage lies: `offset` bytes into the allocation `handle`.

    `counter` is what torch counts this share by, if it does.
    """

    handle: bytes
    offset: int
    counter: Share | None = None


def map_order(
    worker: int,
    instance: int,
    layout: WorkerLayout,
    tensors: Sequence[Tensor],
    imports_events: bool = False,
) -> Map:
    """The order by which a child maps the `tensors` of an instance; `layout` tells the blocks."""
    reach = {tensor.handle: 0 for tensor in tensors}
    index = {handle: i for i, handle in enumerate(reach)}
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
    allocations = [Allocation(*item) for item in reach.items()]
    return Map(worker, instance, allocations, groups, imports_events)
