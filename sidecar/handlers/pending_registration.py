"""What a worker's registration describes: tensors and groups, from the wire to a layout."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from sidecar.engines.cuda.map_order import Tensor
from sidecar.engines.groups import GroupSpec, WorkerLayout, worker_layout
from sidecar.engines.host import HostWorker
from sidecar.engines.host_segments import SegmentRefused
from sidecar.engines.layout import LayerLayout, TensorSpec, UnknownLayout, layer_layout
from sidecar.wire.ipc import CpuShmTensor, CudaTensor, GpuTensor, decode_tensor, memory_handle
from sidecar.wire.messages import BadPayload, EngineGroupInfo, LayoutHints

_MAX_PLANES = 16_384  # of one worker, over all tensors, and over all groups
# torch leaves out the prefix of a whole GPU's.
_UUID = re.compile(r"(GPU-|MIG-)?([0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})")


@dataclass(slots=True)
class PendingRegistration:
    """A registration under way. `prepare` finds its layout, or why it cannot be served.

    `client` is the connection over which it came; `gpu` is the UUID of the GPU on which all
    tensors lie, None for host memory.
    """

    instance_id: int
    client: bytes
    model_name: str
    world_size: int
    hints: LayoutHints
    host_tensors: list[CpuShmTensor] = field(default_factory=list)
    gpu_tensors: list[GpuTensor] = field(default_factory=list)
    memories: list[Tensor] = field(default_factory=list)
    specs: list[GroupSpec] = field(default_factory=list)
    gpu: str | None = None
    layout: WorkerLayout | None = None
    host: HostWorker | None = None
    refusal: str = "mapping failed"
    is_final: bool = False  # no repetition would help: the layout itself is the reason

    def _describe(
        self, handles: Sequence[msgspec.msgpack.Ext], groups: Sequence[EngineGroupInfo]
    ) -> None:
        """Take in what the wire says. Raises BadPayload or UnknownLayout."""
        for handle in handles:
            tensor = decode_tensor(handle)
            if isinstance(tensor, CpuShmTensor):
                self.host_tensors.append(tensor)
            else:
                self.gpu_tensors.append(tensor)
                self.memories.append(_memory(tensor))
        self.specs = [_group_spec(info) for info in groups]
        if self.gpu_tensors:
            self.gpu = _gpu(self.gpu_tensors)
            if self.host_tensors:
                raise UnknownLayout("tensors in host memory and on a GPU")

    def prepare(
        self,
        handles: Sequence[msgspec.msgpack.Ext],
        groups: Sequence[EngineGroupInfo],
        chunk_size: int,
    ) -> None:
        """Read the handles, find the layout and map host memory.

        For a copy thread: handles may be thousands, and segments large.
        """
        try:
            self._describe(handles, groups)
            self.layout = worker_layout(self._layers(), self.specs, chunk_size)
            _check_groups(self.layout)
            if self.gpu is None:
                names = [tensor.shm_name for tensor in self.host_tensors]
                self.host = HostWorker(self.layout, names, _segment_sizes(self.host_tensors))
        except (BadPayload, UnknownLayout, SegmentRefused) as error:
            self.layout, self.refusal = None, str(error)
            self.is_final = not isinstance(error, SegmentRefused)

    def _layers(self) -> list[LayerLayout]:
        layers: list[LayerLayout] = []
        planes = 0
        for i, tensor in enumerate(self.gpu_tensors or self.host_tensors):
            m = tensor.metadata
            spec = TensorSpec(m.dtype, tuple(m.shape), tuple(m.stride), m.storage_offset)
            layers.append(layer_layout(i, spec, self.hints.kv_layout, tensor.nbytes))
            planes += len(layers[-1].planes)
            if planes > _MAX_PLANES:
                raise UnknownLayout("the tensors lie in too many pieces")
        return layers


def _check_groups(layout: WorkerLayout) -> None:
    """Raises UnknownLayout where groups name the same tensors again and again."""
    planes = sum(len(layer.planes) for group in layout.groups for layer in group.layers)
    if planes > _MAX_PLANES:
        raise UnknownLayout("the groups lie in too many pieces")


def _memory(tensor: GpuTensor) -> Tensor:
    if not isinstance(tensor, CudaTensor):
        return Tensor(memory_handle(tensor), tensor.alloc_offset)
    _, _, _, offset, file, index, _, _ = tensor.handle
    counter = (file.decode("ascii", "replace"), index) if file else None
    return Tensor(memory_handle(tensor), offset, counter)


def _gpu(tensors: list[GpuTensor]) -> str:
    """The GPU on which they all lie, as CUDA_VISIBLE_DEVICES names it."""
    uuids = {tensor.metadata.device_uuid for tensor in tensors}
    if len(uuids) > 1:
        raise UnknownLayout("tensors of one worker on several GPUs")
    match = _UUID.fullmatch(uuids.pop())
    if match is None:
        raise UnknownLayout(f"GPU {tensors[0].metadata.device_uuid!r} is no UUID")
    return (match[1] or "GPU-") + match[2]


def _group_spec(info: EngineGroupInfo) -> GroupSpec:
    if info.recurrent_state is True:
        raise UnknownLayout("recurrent-state groups are not supported")
    window = info.sw_size_tokens if info.sw_size_tokens > 0 else None
    return GroupSpec(tuple(info.layer_indices), info.tokens_per_block, window)


def _segment_sizes(tensors: list[CpuShmTensor]) -> dict[str, int]:
    """Each segment once, however many tensors lie in it (fused pools)."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.shm_name] = max(tensor.nbytes, sizes.get(tensor.shm_name, 0))
    return sizes
