"""Records as values of a server that speaks the Redis protocol: Redis, Valkey and others."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, NamedTuple

import numpy as np
from msgspec import Meta

from sidecar.addresses import unbracketed
from sidecar.tiers.adapters.client_library import library
from sidecar.tiers.base import (
    Adapter,
    AdapterUnusable,
    Bytes,
    Corrupt,
    Found,
    Missing,
    NoSpace,
    TierError,
)
from sidecar.tiers.names import ObjectName, parse_path
from sidecar.tiers.settings import AdapterSettings, Positive, adapter

_PORT = 6379
_MAX_VALUE = 512 << 20  # bytes; the protocol's own limit on a string
_READ_BYTES = 1 << 20
_NO_RIGHT = "no_permission"
_QUARANTINED = 16  # objects
_QUARANTINE_SECONDS = 24 * 3600
_GLOB = re.compile(r"([*?\[\]\\^])")


class Address(NamedTuple):
    host: str
    port: int


@adapter("resp", "valkey")
class RespSettings(AdapterSettings, frozen=True, kw_only=True):
    """Redis or Valkey: `host` and `port`, or `startup_nodes`."""

    host: Annotated[str, Meta(description="without it LMCACHE_RESP_HOST")] = ""
    port: Annotated[
        int, Meta(ge=0, le=65535, description="0 = LMCACHE_RESP_PORT, or else 6379")
    ] = 0
    startup_nodes: Annotated[
        str, Meta(description="Valkey's way to say host and port: one `host:port`")
    ] = ""
    cluster_mode: Annotated[bool, Meta(description="true is refused: one server only")] = False
    username: Annotated[str, Meta(description="without it LMCACHE_RESP_USERNAME")] = ""
    password: Annotated[str, Meta(description="without it LMCACHE_RESP_PASSWORD")] = ""
    database_id: Annotated[int, Meta(ge=0, description="number of the database")] = 0
    tls_enable: Annotated[bool, Meta(description="TLS to the server")] = False
    key_prefix: Annotated[
        str, Meta(min_length=1, max_length=200, description="begins every key")
    ] = "kv-sidecar"
    ttl_seconds: Annotated[
        Annotated[int, Meta(gt=0)] | None,
        Meta(description="how long a record is kept; without it, until the server evicts it"),
    ] = None
    request_timeout: Annotated[
        Positive | None, Meta(description="seconds; without it `timeout_seconds`")
    ] = None
    connection_timeout: Annotated[
        Positive | None, Meta(description="seconds; without it `timeout_seconds`")
    ] = None

    def __post_init__(self) -> None:
        if self.cluster_mode:
            raise ValueError("cluster_mode is not implemented: give a single server")
        if self.startup_nodes:
            self._node()
        if self.max_capacity_gb:
            raise ValueError(
                "max_capacity_gb cannot be enforced in a server that others write to: "
                "set its maxmemory and an LRU maxmemory-policy instead"
            )

    def _node(self) -> Address:
        host, _, port = self.startup_nodes.rpartition(":")
        bare = unbracketed(host)
        if self.host or "," in host or not host or not port.isdigit():
            raise ValueError("startup_nodes is one host:port, instead of host and port")
        if ":" in host and bare == host:
            raise ValueError("startup_nodes has an IPv6 address without brackets: [::1]:6379")
        return Address(bare, int(port))

    def address(self) -> Address:
        """Where the server is. Raises AdapterUnusable."""
        if self.startup_nodes:
            return self._node()
        host = self.host or os.environ.get("LMCACHE_RESP_HOST", "")
        port = str(self.port or os.environ.get("LMCACHE_RESP_PORT", _PORT))
        if not host:
            raise AdapterUnusable("resp: no host is given, nor LMCACHE_RESP_HOST set")
        if not port.isdigit():
            raise AdapterUnusable(f"resp: LMCACHE_RESP_PORT is no port: {port!r}")
        return Address(unbracketed(host), int(port))

    def build(self) -> Adapter:
        return _Resp(self, library("redis", "resp"))


class _Resp:
    shared = True

    def __init__(self, settings: RespSettings, redis: Any) -> None:
        # Connects at the first request: a server that is down does not keep a sidecar down.
        self._client = redis.Redis(**_arguments(settings, redis))
        self._prefix = settings.key_prefix + "/"
        self._quarantine = settings.key_prefix + "-quarantine/"
        self._mark = settings.key_prefix + "-epoch"
        self._ttl = settings.ttl_seconds

    def open(self, arena: Bytes) -> None:
        pass

    def close(self) -> None:
        self._client.close()

    def store(self, name: ObjectName, record: Bytes) -> None:
        if record.nbytes > _MAX_VALUE:
            raise TierError("too_large", f"{record.nbytes} bytes; a value holds {_MAX_VALUE}")
        with _translated():
            self._client.set(self._key(name), record.data, ex=self._ttl)

    def load(self, name: ObjectName, record: Bytes) -> None:
        with _translated():
            value = self._client.get(self._key(name))
        if not value:
            raise Missing
        if len(value) != record.nbytes:
            raise Corrupt("length", f"{len(value)} bytes")
        record[:] = np.frombuffer(value, np.uint8)

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        return [size or None for size in self._sizes([self._key(name) for name in names])]

    def _sizes(self, keys: Sequence[str | bytes]) -> list[int]:
        """The lengths of these values, 0 for what is not there."""
        pipeline = self._client.pipeline(transaction=False)
        for key in keys:
            pipeline.strlen(key)
        with _translated():
            sizes: list[int] = pipeline.execute()
        return sizes

    def delete(self, names: Sequence[ObjectName]) -> None:
        """Where the rights allow to write but not to delete, an empty value takes its place."""
        keys = [self._key(name) for name in names]
        if keys and not self._unlinked(keys):
            pipeline = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.set(key, b"", ex=self._ttl, xx=True)
            with _translated():
                pipeline.execute()

    def _unlinked(self, keys: Sequence[str]) -> bool:
        """False if the rights do not allow it."""
        try:
            with _translated():
                self._client.unlink(*keys)
        except TierError as error:
            if error.cause != _NO_RIGHT:
                raise
            return False
        return True

    def read_mark(self) -> str | None:
        with _translated():
            mark = self._client.get(self._mark)
        return None if mark is None else mark.decode("ascii", "replace")

    def write_mark(self, mark: str) -> None:
        with _translated():
            self._client.set(self._mark, mark)

    def scan(self) -> Iterator[list[Found]]:
        cursor = None
        pattern = _GLOB.sub(r"\\\1", self._prefix) + "*"
        while cursor != 0:
            with _translated():
                cursor, keys = self._client.scan(cursor or 0, match=pattern, count=512)
            yield [
                Found(name, size, 0.0)  # only the server knows when it was used
                for key, size in zip(keys, self._sizes(keys), strict=True)
                if size and (name := self._parse(key)) is not None
            ]

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        """Kept for a day at most, and only until another takes its slot."""
        slot = f"{self._quarantine}{name.hash[0] % _QUARANTINED}"
        try:
            with _translated():
                pipeline = self._client.pipeline()
                pipeline.rename(self._key(name), slot)
                pipeline.expire(slot, _QUARANTINE_SECONDS)
                pipeline.execute()
        except Missing:
            return False
        except TierError as error:
            if error.cause != _NO_RIGHT:
                raise
            self.delete([name])
            return False
        return True

    def room(self) -> int | None:
        return None

    def _key(self, name: ObjectName) -> str:
        return self._prefix + name.path

    def _parse(self, key: bytes) -> ObjectName | None:
        return parse_path(key.decode(errors="replace").removeprefix(self._prefix))


def _arguments(settings: RespSettings, redis: Any) -> dict[str, Any]:
    host, port = settings.address()
    username = settings.username or os.environ.get("LMCACHE_RESP_USERNAME")
    password = settings.password or os.environ.get("LMCACHE_RESP_PASSWORD")
    seconds = settings.timeout_seconds
    lost = (redis.exceptions.ConnectionError,)
    return {
        "host": host,
        "port": port,
        "username": username or None,
        "password": password or None,
        "db": settings.database_id,
        "ssl": settings.tls_enable,
        "socket_timeout": settings.request_timeout or seconds,
        "socket_connect_timeout": settings.connection_timeout or seconds,
        "socket_read_size": _READ_BYTES,
        # Once more, at once, for a connection that the server has closed; never for a timeout.
        "retry": redis.retry.Retry(redis.backoff.NoBackoff(), 1, supported_errors=lost),
    }


@contextmanager
def _translated() -> Iterator[None]:
    """What redis-py raises, as TierError."""
    from redis import exceptions

    try:
        yield
    except exceptions.OutOfMemoryError as error:
        raise NoSpace("maxmemory", str(error)) from None
    except exceptions.TimeoutError as error:
        raise TierError("timeout", str(error)) from None
    except exceptions.NoPermissionError as error:
        raise TierError(_NO_RIGHT, str(error)) from None
    except exceptions.AuthenticationError as error:
        raise TierError("unauthenticated", str(error)) from None
    except exceptions.ConnectionError as error:
        raise TierError("connection", str(error)) from None
    except exceptions.RedisError as error:
        if "no such key" in str(error):
            raise Missing from None
        raise TierError("redis", str(error)[:300]) from None
