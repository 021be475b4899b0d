"""The log of lookups that `kv-sidecar replay` reads: who asked for what again, and no tokens."""

import logging
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from blake3 import blake3

from sidecar.cache.leases import Scope
from sidecar.outbox import Outbox
from sidecar.replay.trace import Line, written

log = logging.getLogger(__name__)
_WAITING = 1024  # lookups
_LARGEST = 1 << 30


class _Lookup(NamedTuple):
    scope: Scope
    hashes: Sequence[bytes]
    tokens: int
    at: float


class LookupLog:
    """Appends to a file, at most 1 GiB in one life, on a thread of its own.

    An id is a hash of a chunk's hash under a key that nobody keeps: equal ids are equal beginnings,
    and from an id nobody can tell, or confirm, what was asked. Ids of two lives do not compare.
    """

    def __init__(self, path: Path, tokens_per_id: int) -> None:
        """Raises OSError."""
        # A pipe without a reader would keep the server from starting.
        how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._file = os.fdopen(os.open(path, how, 0o600), "wb")
        self._path, self._tokens_per_id = path, tokens_per_id
        self._key = secrets.token_bytes(32)
        self._began = time.monotonic()
        self._left = _LARGEST
        self.dropped = 0  # the disk was too slow for them
        self._waiting: Outbox[_Lookup] = Outbox("lookup-log", _WAITING, self._run)
        self._waiting.start()

    def add(self, scope: Scope, hashes: Sequence[bytes], tokens: int) -> None:
        """A lookup of `tokens` tokens, whose chunks have these hashes. Waits for nothing."""
        self.dropped += not self._waiting.put(_Lookup(scope, hashes, tokens, time.monotonic()))

    def close(self) -> None:
        """Write what waits, within two seconds."""
        self._waiting.close()
        if self.dropped:
            log.warning("%s lacks %d lookups: writing was too slow", self._path, self.dropped)

    def _run(self) -> None:
        try:
            while (lookup := self._waiting.take()) is not None:
                self._write(lookup)
                if self._waiting.is_empty:
                    self._file.flush()
            self._file.close()
        except OSError as error:
            log.warning("lookups are not recorded any more: %s: %s", self._path, error)
            self._left = 0
            while self._waiting.take() is not None:
                pass

    def _write(self, lookup: _Lookup) -> None:
        if self._left <= 0:
            return
        scope_key = blake3(repr(tuple(lookup.scope)).encode(), key=self._key).digest()
        ids = [_id(chunk_hash, scope_key) for chunk_hash in lookup.hashes]
        salt = lookup.scope.cache_salt
        tenant = blake3(salt.encode("utf-8", "replace"), key=self._key).hexdigest(8) if salt else ""
        line = Line(lookup.tokens, ids, self._tokens_per_id, tenant)
        text = written(line, int(1000 * (lookup.at - self._began)))
        self._left -= len(text)
        if self._left <= 0:
            log.warning("%s has reached 1 GiB: lookups are not recorded any more", self._path)
            self._file.flush()
            return
        self._file.write(text)


def _id(chunk_hash: bytes, key: bytes) -> int:
    """63 bits."""
    return int.from_bytes(blake3(chunk_hash, key=key).digest(8), "big") >> 1
