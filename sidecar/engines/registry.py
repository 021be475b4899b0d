"""Registered workers: who they are, which layout they have, whether they are still there.

A worker is known by its instance id, and only its owner speaks for it: the client (connection)
that registered it. A client library that loses its connection goes on over another one, under a
new routing identity. So the id passes to the next connection that names it, once the owner's is
gone, and not before.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from sidecar.engines.groups import WorkerLayout
from sidecar.engines.worker_memory import WorkerMemory

_REMEMBERED = 1024
_CLIENTS_REMEMBERED, _IDS_A_CLIENT, _WORKERS_A_SCHEDULER = 4096, 16, 1024
K = TypeVar("K")
T = TypeVar("T")


def shown(instance_id: int) -> int:
    """What logs, metrics and the admin port tell of an id: 31 bits of a hash.

    The id itself is all that a peer needs to take a worker over whose connection has broken.
    """
    digest = hashlib.blake2b(instance_id.to_bytes(8, "big"), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


class NotOwner(Exception):
    """Somebody names a worker that another connection speaks for, which still stands."""

    def __init__(self, instance_id: int) -> None:
        super().__init__(f"worker {shown(instance_id)} is registered over another connection")


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

    `fingerprint` and `object_bytes` say what its objects are, `releases` which lmcache it has.
    Times are on the cache's clock.
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
    releases: str = ""
    rank: int | None = None
    proven: bool = False
    unreachable_since: float | None = None
    transfers: int = 0
    contested: bool = False  # another connection has registered under its id in vain

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
    A second worker under an id that is taken hears True: it computes until the first has left.
    """

    instances: dict[int, Instance] = field(default_factory=dict)
    _told: OrderedDict[bytes, OrderedDict[int, bool | None]] = field(default_factory=OrderedDict)
    _leaving: OrderedDict[int, Instance] = field(default_factory=OrderedDict)
    _workers_of: OrderedDict[bytes, OrderedDict[int, None]] = field(default_factory=OrderedDict)

    def add(self, instance: Instance) -> Instance | None:
        """Register, replacing what was registered under the same id, which is returned."""
        if instance.client in self._told:
            self._told[instance.client].pop(instance.id, None)
        old = self.instances.get(instance.id)
        self.instances[instance.id] = instance
        return old

    def holds(self, instance: Instance) -> bool:
        """Whether this very registration is the one that counts."""
        return self.instances.get(instance.id) is instance

    def worker_of(self, client: bytes) -> int | None:
        """The worker that this connection speaks for, or spoke for until it was forgotten."""
        owned = (worker.id for worker in self.instances.values() if worker.client == client)
        return next(owned, None) or next(reversed(self._told.get(client, {})), None)

    def owned(self, client: bytes) -> int:
        """How many workers this connection speaks for."""
        return sum(instance.client == client for instance in self.instances.values())

    def remove(self, instance_id: int) -> Instance | None:
        """Forget a worker. If it speaks again, it is made to register again."""
        instance = self.instances.pop(instance_id, None)
        if instance is not None:
            self._tell(instance.client, instance_id, True)
        if instance is not None and instance.memory is not None and instance.transfers:
            _remember(self._leaving, instance_id, instance, _REMEMBERED)
        return instance

    def refuse(self, instance_id: int, client: bytes) -> Instance | None:
        """The worker cannot be served as it registered now; returns what it was before."""
        self._tell(client, instance_id, None)
        return self.instances.pop(instance_id, None)

    def speaker(
        self, instance_id: int, client: bytes, now: float, is_connected: Callable[[bytes], bool]
    ) -> Instance | None:
        """The worker that `client` names, heard from now; None if it is not registered.

        Raises NotOwner if it is another connection's, and `is_connected` says that it stands. When
        it has ended, whoever comes next is the same worker, unless another one has registered under
        its id: the memory may be the other's then, and it is for nobody. Both register again.
        """
        instance = self.instances.get(instance_id)
        if instance is None:
            return None
        if instance.client != client:
            if is_connected(instance.client):
                raise NotOwner(instance_id)
            if instance.contested:
                return None
            instance.client = client
        instance.last_seen = now
        instance.unreachable_since = None
        return instance

    def contest(self, instance_id: int) -> None:
        """Another connection has registered under this id, and was refused."""
        if instance_id in self.instances:
            self.instances[instance_id].contested = True

    def touch(self, instance_id: int, client: bytes, now: float) -> None:
        """Something has come over `client` that names this worker; it counts if it is its own."""
        instance = self.instances.get(instance_id)
        if instance is not None and instance.client == client:
            instance.last_seen = now
            instance.unreachable_since = None

    def ping_answer(self, instance_id: int, client: bytes) -> bool:
        """The answer to a ping that names this worker."""
        if instance_id in self.instances:
            return True
        leaving = self._leaving.get(instance_id)
        if leaving is not None and leaving.transfers:
            return True
        last = self._told[client].get(instance_id, True) if client in self._told else True
        if last is None:
            return True  # its registration was refused
        self._tell(client, instance_id, not last)
        return not last

    def _tell(self, client: bytes, instance_id: int, answer: bool | None) -> None:
        """Remember the last answer by connection: nobody's pings push out what others were told."""
        told = self._told.get(client, OrderedDict())
        _remember(told, instance_id, answer, _IDS_A_CLIENT)
        _remember(self._told, client, told, _CLIENTS_REMEMBERED)

    def serves(self, instance: Instance, scheduler: bytes) -> None:
        """The worker has transferred for a request that this connection looked up."""
        workers = self._workers_of.get(scheduler, OrderedDict())
        _remember(workers, instance.id, None, _WORKERS_A_SCHEDULER)
        _remember(self._workers_of, scheduler, workers, _CLIENTS_REMEMBERED)

    def layouts(self, model_name: str, world_size: int, scheduler: bytes) -> list[list[Instance]]:
        """By rank, one worker for each layout that `scheduler` may mean; [] if none is served.

        These are the layouts of its own workers, where one of the rank is known, and else all in
        which the rank is served now: others' registrations do not concern it. A worker tells its
        rank with its first transfer. Until then it may be any, and its layout counts for all:
        pipeline stages may have different ones.
        """
        own = self._workers_of.get(scheduler, OrderedDict())
        found: dict[int | None, dict[bytes, Instance]] = {}
        known: dict[int | None, dict[bytes, Instance]] = {}
        for instance in self.instances.values():
            if (instance.model_name, instance.world_size) == (model_name, world_size):
                found.setdefault(instance.rank, {}).setdefault(instance.fingerprint, instance)
                if instance.id in own and instance.rank is not None:
                    known.setdefault(instance.rank, {}).setdefault(instance.fingerprint, instance)
        if not found:
            return []
        unknown = found.pop(None, {})
        anybody = list(unknown.values())  # one list for all ranks, of which there may be many
        of_rank = {rank: list({**unknown, **served}.values()) for rank, served in found.items()}
        of_rank |= {rank: list(served.values()) for rank, served in known.items()}
        return [of_rank.get(rank, anybody) for rank in range(world_size)]


def _remember(memory: OrderedDict[K, T], key: K, value: T, limit: int) -> None:
    memory[key] = value
    memory.move_to_end(key)
    while len(memory) > limit:
        memory.popitem(last=False)
