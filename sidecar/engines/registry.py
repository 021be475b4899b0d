"""Registered workers: who they are, which layout they have, whether they are still there.

A worker speaks over a connection that may be replaced at any time, so it is known by its
instance id; the client (connection) that it last spoke over tells whether it is gone.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeVar

from sidecar.engines.groups import WorkerLayout
from sidecar.engines.memory import WorkerMemory

_REMEMBERED = 1024
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SlotShape:
    """How an engine-driven worker views an object: the client dictates shape and dtype."""

    shape: tuple[int, ...]
    dtype: str
    block_size: int
    num_layers: int
    single_plane: bool


@dataclass(eq=False, slots=True)
class Instance:
    """One registered worker. Exactly one of `memory` and `slot_shape` is set.

    `fingerprint` and `object_bytes` say what its objects are. Times are on the cache's clock.
    """

    id: int
    model_name: str
    world_size: int
    fingerprint: bytes
    object_bytes: int
    client: bytes
    last_seen: float
    layout: WorkerLayout | None = None
    memory: WorkerMemory | None = None
    slot_shape: SlotShape | None = None
    rank: int | None = None
    proven: bool = False
    unreachable_since: float | None = None
    transfers: int = 0

    @property
    def kind(self) -> str:
        return "handle" if self.memory is not None else "engine_driven"

    @property
    def mapped(self) -> WorkerMemory:
        """The memory of a handle-mode worker."""
        assert self.memory is not None
        return self.memory

    @property
    def windows(self) -> list[tuple[int, int]]:
        """(group, chunks) of the groups that read only the last chunks of a prefix."""
        groups = self.layout.groups if self.layout else ()
        return [(i, g.window_chunks) for i, g in enumerate(groups) if g.window_chunks is not None]


@dataclass(slots=True)
class Registry:
    """All registered workers, and what is remembered of those that are not.

    A worker that speaks but is not known has been forgotten (a restart, a reap). It registers
    again when it sees the server go unhealthy and healthy, so its pings are answered False,
    then True, until it does. One whose registration was refused is left in peace, and one is told
    nothing while we still move its blocks: on False it gives up its requests and uses them.
    """

    instances: dict[int, Instance] = field(default_factory=dict)
    _forgotten: OrderedDict[int, bool] = field(default_factory=OrderedDict)
    _refused: OrderedDict[int, None] = field(default_factory=OrderedDict)
    _leaving: OrderedDict[int, Instance] = field(default_factory=OrderedDict)

    def add(self, instance: Instance) -> Instance | None:
        """Register, replacing what was registered under the same id, which is returned."""
        self._forgotten.pop(instance.id, None)
        self._refused.pop(instance.id, None)
        old = self.instances.get(instance.id)
        self.instances[instance.id] = instance
        return old

    def holds(self, instance: Instance) -> bool:
        """Whether this very registration is the one that counts."""
        return self.instances.get(instance.id) is instance

    def remove(self, instance_id: int) -> Instance | None:
        """Forget a worker. If it speaks again, it is made to register again."""
        instance = self.instances.pop(instance_id, None)
        if instance is not None and instance.memory is not None and instance.transfers:
            _remember(self._leaving, instance_id, instance)
        return instance

    def refuse(self, instance_id: int) -> Instance | None:
        """The worker cannot be served as it registered now; returns what it was before."""
        _remember(self._refused, instance_id, None)
        return self.instances.pop(instance_id, None)

    def hear(self, instance_id: int, client: bytes, now: float) -> Instance | None:
        """A message of this worker has come over `client`."""
        instance = self.instances.get(instance_id)
        if instance is not None:
            instance.client = client
            instance.last_seen = now
            instance.unreachable_since = None
        return instance

    def ping_answer(self, instance_id: int) -> bool:
        """The answer to a ping of this worker."""
        if instance_id in self.instances or instance_id in self._refused:
            return True
        leaving = self._leaving.get(instance_id)
        if leaving is not None and leaving.transfers:
            return True
        answer = not self._forgotten.get(instance_id, True)
        _remember(self._forgotten, instance_id, answer)
        return answer

    def moves_files(self, model_name: str, world_size: int, fingerprint: bytes) -> bool:
        """Whether all workers of one layout can move files from and to their memory themselves."""
        return all(
            worker.memory is not None and worker.memory.moves_files
            for worker in self.instances.values()
            if (worker.model_name, worker.world_size) == (model_name, world_size)
            and worker.fingerprint == fingerprint
        )

    def layouts(self, model_name: str, world_size: int) -> list[list[Instance]]:
        """By rank, one worker for each layout in which the rank is served now; [] if none is.

        A worker tells its rank with its first transfer. Until then it may be any, and its
        layout counts for all: pipeline stages may have different ones.
        """
        found: dict[int | None, dict[bytes, Instance]] = {}
        for instance in self.instances.values():
            if (instance.model_name, instance.world_size) == (model_name, world_size):
                found.setdefault(instance.rank, {}).setdefault(instance.fingerprint, instance)
        if not found:
            return []
        unknown = found.pop(None, {})
        anybody = list(unknown.values())  # one list for all ranks, of which there may be many
        of_rank = {rank: list({**unknown, **known}.values()) for rank, known in found.items()}
        return [of_rank.get(rank, anybody) for rank in range(world_size)]


def _remember(memory: OrderedDict[int, T], instance_id: int, value: T) -> None:
    memory[instance_id] = value
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
