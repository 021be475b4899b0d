"""Object stores reached by NIXL: OBJ (S3) and AZURE_BLOB.

NIXL can put, get and ask for objects, no more: nothing here is counted or listed, and to delete
an object is to put a page in its place that says so. A lifecycle rule of the bucket has to remove
them.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from threading import Lock

import numpy as np
import xxhash

from sidecar.tiers.adapters.nixl_agent import Agent
from sidecar.tiers.base import AdapterUnusable, Bytes, Found, Missing, TierError
from sidecar.tiers.names import ObjectName

_MAX_BAD = 4096
_PAGE = 4096
_MARK_KEY = "epoch"
_MARK_MAGIC = b"KVSIDEGN"
_DELETED = b"KVSIDEDL"


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
        self._page_lock = Lock()  # of the page by which the mark is moved

    def open(self, arena: Bytes) -> None:
        # Without credentials the AWS library would wait for a metadata service that only
        # Amazon's machines have.
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
        self._page, self._deleted = _new_page(), _new_page()
        self._deleted[: len(_DELETED)] = np.frombuffer(_DELETED, np.uint8)
        try:
            self._agent = Agent(self._backend, self._params, arena, self._page, self._deleted)
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
        if record[: len(_DELETED)].tobytes() == _DELETED:
            self._remember_bad(name)
            raise Missing()

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        exist = self._agent.exist([self._key(name) for name in names])
        return [
            0 if there and name not in self._bad else None
            for name, there in zip(names, exist, strict=True)
        ]

    def delete(self, names: Sequence[ObjectName]) -> None:
        for name, size in zip(names, self.find(names) if names else (), strict=True):
            if size is not None:
                self._agent.write(self._deleted, "OBJ", next(self._device), self._key(name))
                self._remember_bad(name)

    def read_mark(self) -> str | None:
        """The mark is a page: magic, length, text, zeros, and xxh3_64 of that at its end."""
        key = self._prefix + _MARK_KEY
        if not self._agent.exist([key])[0]:
            return None
        with self._page_lock:
            self._page[:] = 0
            self._agent.read(self._page, "OBJ", next(self._device), key)
            page = self._page.tobytes()
        if page[:8] != _MARK_MAGIC or xxhash.xxh3_64_digest(page[:-8]) != page[-8:]:
            return None
        return page[9 : 9 + page[8]].decode("ascii", "replace")

    def write_mark(self, mark: str) -> None:
        text = mark.encode("ascii")
        page = (_MARK_MAGIC + bytes([len(text)]) + text).ljust(_PAGE - 8, b"\0")
        with self._page_lock:
            self._page[:] = np.frombuffer(page + xxhash.xxh3_64_digest(page), np.uint8)
            self._agent.write(self._page, "OBJ", next(self._device), self._prefix + _MARK_KEY)

    def scan(self) -> Iterator[list[Found]]:
        return iter(())

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        self._remember_bad(name)
        return False

    def _remember_bad(self, name: ObjectName) -> None:
        with self._bad_lock:
            self._bad[name] = None
            if len(self._bad) > _MAX_BAD:
                self._bad.popitem(last=False)

    def room(self) -> None:
        return None

    def _key(self, name: ObjectName) -> str:
        return self._prefix + name.path


def _new_page() -> Bytes:
    """A page of zeros that begins where a page does."""
    return np.frombuffer(mmap.mmap(-1, _PAGE), np.uint8)
