"""A bucket as a backend: each record is an object, put in one request."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from sidecar.tiers.adapters.s3_errors import DENIED, NO_BULK, translated
from sidecar.tiers.base import Bytes, Corrupt, Found, Missing, TierError
from sidecar.tiers.names import ObjectName, parse_path

log = logging.getLogger(__name__)

_QUARANTINED = 16  # objects
_HEADS_AT_ONCE = 32


class Bucket:
    """The objects under `prefix/` of a bucket, by the module `obstore`.

    `store` and `one_by_one` are two ways to it: the latter deletes objects one by one. They
    connect at the first request: a bucket that is down does not keep a sidecar down. What may be
    done besides reading and writing is found out when it is refused.
    """

    def __init__(
        self, obstore: Any, store: Any, one_by_one: Any, *, prefix: str, shared: bool
    ) -> None:
        self.shared = shared
        self._obstore = obstore
        self._prefix = prefix
        self._mark = f"{prefix}-epoch"
        self._store = store
        self._one_by_one = one_by_one
        self._deletes_in_bulk = True
        # Where listing is not allowed, an absent object looks forbidden. It does when what is
        # known to be there can be read.
        self._reads = self._wrote_mark = self._said_so = False

    def open(self, arena: Bytes) -> None:
        self._pool = ThreadPoolExecutor(_HEADS_AT_ONCE, thread_name_prefix="s3-head")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def store(self, name: ObjectName, record: Bytes) -> None:
        with translated("s3:PutObject"):
            # In one request: what a broken multipart upload leaves behind stays, and is paid for.
            self._obstore.put(self._store, self._key(name), record.data, use_multipart=False)

    def load(self, name: ObjectName, record: Bytes) -> None:
        with self._absent_if_denied():
            reply = self._obstore.get(self._store, self._key(name))
            size = reply.meta["size"]
            if not size:
                raise Missing  # it has been deleted by those who may not delete
            if size != record.nbytes:
                raise Corrupt("length", f"{size} bytes")
            record[:] = np.frombuffer(reply.bytes(), np.uint8)

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        return list(self._pool.map(self._size, names))

    def _size(self, name: ObjectName) -> int | None:
        try:
            with self._absent_if_denied():
                return int(self._obstore.head(self._store, self._key(name))["size"]) or None
        except Missing:
            return None

    def delete(self, names: Sequence[ObjectName]) -> None:
        """Where the right to delete is missing, an empty object takes the place of each."""
        keys = [self._key(name) for name in names]
        try:
            self._remove(keys)
        except TierError as error:
            if error.cause != DENIED:
                raise
            for _ in self._pool.map(self._empty, keys):
                pass

    def _remove(self, keys: list[str]) -> None:
        if self._deletes_in_bulk:
            try:
                with translated("s3:DeleteObject"):
                    self._obstore.delete(self._store, keys)
                    return
            except TierError as error:
                if error.cause not in NO_BULK:
                    raise
                log.info("s3: objects are deleted one by one: %s", error)
                self._deletes_in_bulk = False
        for _ in self._pool.map(self._remove_one, keys):
            pass

    def _remove_one(self, key: str) -> None:
        with translated("s3:DeleteObject"), suppress(FileNotFoundError):
            self._obstore.delete(self._one_by_one, key)

    def _empty(self, key: str) -> None:
        with translated("s3:PutObject"):
            self._obstore.put(self._store, key, b"", use_multipart=False)

    def read_mark(self) -> str | None:
        try:
            with translated("s3:GetObject"):
                mark = bytes(self._obstore.get(self._store, self._mark).bytes())
        except Missing:
            return None
        except TierError as error:
            if error.cause != DENIED or (self._wrote_mark and not self._reads):
                raise
            return None
        self._reads = True
        return mark.decode("ascii", "replace")

    def write_mark(self, mark: str) -> None:
        with translated("s3:PutObject"):
            self._obstore.put(self._store, self._mark, mark.encode(), use_multipart=False)
        self._wrote_mark = True

    def scan(self) -> Iterator[list[Found]]:
        for objects in self._list(self._prefix):
            paths = [item["path"].removeprefix(self._prefix + "/") for item in objects]
            yield [
                Found(name, item["size"], item["last_modified"].timestamp())
                for item, path in zip(objects, paths, strict=True)
                if item["size"] and (name := parse_path(path)) is not None
            ]

    def _list(self, prefix: str) -> Iterator[list[Any]]:
        with translated("s3:ListBucket"):
            yield from self._obstore.list(self._store, prefix, chunk_size=512)

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        kept = self._quarantine(name)
        self.delete([name])
        return kept

    def _quarantine(self, name: ObjectName) -> bool:
        place = self._prefix + "-quarantine"
        try:
            with translated("s3:PutObject"):
                self._obstore.copy(self._store, self._key(name), f"{place}/{name.path}")
            kept = [item for objects in self._list(place) for item in objects]
            kept.sort(key=lambda item: item["last_modified"], reverse=True)
            self._remove([item["path"] for item in kept[_QUARANTINED:]])
        except TierError:
            return False  # that a bad object is gone matters more than that it can be looked at
        return True

    def room(self) -> int | None:
        return None

    def _key(self, name: ObjectName) -> str:
        return f"{self._prefix}/{name.path}"

    @contextmanager
    def _absent_if_denied(self) -> Iterator[None]:
        try:
            with translated("s3:GetObject"):
                yield
        except TierError as error:
            if error.cause != DENIED or not self._reads:
                raise
            if not self._said_so:
                self._said_so = True
                log.warning(
                    "s3: the permission s3:ListBucket is missing: S3 says forbidden of what is not "
                    "there, which counts as a miss"
                )
            raise Missing from None
