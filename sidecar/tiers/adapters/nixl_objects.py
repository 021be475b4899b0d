"""Object stores reached by NIXL: OBJ (S3) and AZURE_BLOB.

NIXL can put, get and ask for objects, no more: nothing here is counted, listed or deleted, so
a lifecycle rule of the bucket has to.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from threading import Lock

from sidecar.tiers.adapters.nixl_agent import Agent
from sidecar.tiers.base import AdapterUnusable, Bytes, Found, Missing, TierError
from sidecar.tiers.names import ObjectName

_MAX_BAD = 4096


class NixlObjects:
    """The adapter over a bucket or container. Keys are `prefix` and the name's path."""

    shared = True

    def __init__(self, backend: str, params: Mapping[str, str], prefix: str) -> None:
        self._backend = backend
        self._params = params
        self._prefix = prefix
        self._device = count(1)  # how NIXL tells apart the objects that are under way
        # Bad objects stay where they are until they are stored again; they are not found.
        self._bad: OrderedDict[ObjectName, None] = OrderedDict()
        self._bad_lock = Lock()

    def open(self, arena: Bytes) -> None:
        # Without credentials the AWS library would wait for a metadata service that only
        # Amazon's machines have.
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
        try:
            self._agent = Agent(self._backend, self._params, arena)
        except TierError as error:
            raise AdapterUnusable(f"NIXL: {error}: check backend_params") from error

    def close(self) -> None:
        self._agent.close()

    def store(self, name: ObjectName, record: Bytes) -> None:
        self._agent.write(record, "OBJ", next(self._device), self._key(name))
        with self._bad_lock:
            self._bad.pop(name, None)

    def load(self, name: ObjectName, record: Bytes) -> None:
        # Reading an object that is not there "succeeds" with the server's error text, and one
        # that is too short with what was in the record before; the record's header tells.
        if self.find([name]) == [None]:
            raise Missing()
        self._agent.read(record, "OBJ", next(self._device), self._key(name))

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        exist = self._agent.exist([self._key(name) for name in names])
        return [
            0 if there and name not in self._bad else None
            for name, there in zip(names, exist, strict=True)
        ]

    def delete(self, names: Sequence[ObjectName]) -> None:
        pass

    def scan(self) -> Iterator[list[Found]]:
        return iter(())

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        with self._bad_lock:
            self._bad[name] = None
            if len(self._bad) > _MAX_BAD:
                self._bad.popitem(last=False)
        return False

    def room(self) -> None:
        return None

    def _key(self, name: ObjectName) -> str:
        return self._prefix + name.path
