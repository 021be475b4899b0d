"""Records as objects of an S3 bucket, or of a server that speaks S3's protocol."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from msgspec import Meta

from sidecar.tiers.adapters.libraries import library
from sidecar.tiers.base import Adapter, Bytes, Corrupt, Found, Missing, NoSpace, TierError
from sidecar.tiers.names import ObjectName, parse_path
from sidecar.tiers.settings import AdapterSettings

_QUARANTINED = 16  # objects
_HEADS_AT_ONCE = 32
_CONNECT_SECONDS = 2.0
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
_URL = re.compile(r"(https?)://[^/\s]+/?")
_STATUS = re.compile(r"status code: (\d{3})")


class Place(NamedTuple):
    """Where a bucket is; without an endpoint it is at AWS."""

    bucket: str
    endpoint: str | None = None
    in_host: bool = False
    """The bucket's name is part of the host's."""


class S3Settings(AdapterSettings, frozen=True, kw_only=True):
    """A bucket: `s3_endpoint`, or `bucket` and `endpoint_url` where it is in the path."""

    s3_endpoint: Annotated[
        str, Meta(description="`s3://bucket`, or `s3://bucket.host[:port]` of another server")
    ] = ""
    bucket: Annotated[str, Meta(description="instead of `s3_endpoint`: the bucket's name")] = ""
    endpoint_url: Annotated[
        str, Meta(description="with `bucket`: `http[s]://host[:port]` of a path-style server")
    ] = ""
    s3_region: Annotated[str, Meta(description="without it, what AWS's variables say")] = ""
    disable_tls: Annotated[bool, Meta(description="http instead of https")] = False
    aws_access_key_id: Annotated[str, Meta(description="without it, what AWS's variables say")] = ""
    aws_secret_access_key: Annotated[str, Meta(description="goes with it")] = ""
    prefix: Annotated[
        str,
        Meta(
            pattern="^[A-Za-z0-9._=@-]{1,200}$",
            description="begins every key: sidecars with the same prefix share what they keep",
        ),
    ] = "kv-sidecar"
    shared: Annotated[
        bool, Meta(description="false: the prefix belongs to this sidecar, which may count it")
    ] = True

    ignored: ClassVar[dict[str, str]] = {
        "s3_num_io_threads": "connections are opened as they are needed",
        "s3_prefer_http2": "HTTP/1.1 is used, which S3 itself speaks",
    }

    def __post_init__(self) -> None:
        self.place()
        if bool(self.aws_access_key_id) != bool(self.aws_secret_access_key):
            raise ValueError("aws_access_key_id and aws_secret_access_key go together")
        if self.shared and self.max_capacity_gb:
            raise ValueError(
                "max_capacity_gb cannot be held in a bucket that others write to: "
                'use a lifecycle rule of the bucket, or "shared": false with a prefix of its own'
            )

    def place(self) -> Place:
        """What the endpoint keys say. Raises ValueError."""
        if bool(self.s3_endpoint) == bool(self.bucket or self.endpoint_url):
            raise ValueError("give either s3_endpoint, or bucket and endpoint_url")
        place = self._from_url() if self.endpoint_url else self._from_endpoint()
        if not _BUCKET.fullmatch(place.bucket):
            raise ValueError(f"{place.bucket!r} is no bucket's name")
        return place

    def _from_url(self) -> Place:
        match = _URL.fullmatch(self.endpoint_url)
        if match is None:
            raise ValueError("endpoint_url is http[s]://host[:port]")
        if self.disable_tls and match[1] == "https":
            raise ValueError("disable_tls contradicts the https of endpoint_url")
        return Place(self.bucket, self.endpoint_url.rstrip("/"))

    def _from_endpoint(self) -> Place:
        host = (self.s3_endpoint or self.bucket).removeprefix("s3://").rstrip("/")
        if "/" in host:
            raise ValueError("s3_endpoint is s3://bucket or s3://bucket.host[:port]")
        bucket, dot, _ = host.partition(".")
        if dot:
            scheme = "http" if self.disable_tls else "https"
            return Place(bucket, f"{scheme}://{host}", in_host=True)
        if self.disable_tls:
            raise ValueError("disable_tls needs the host: s3://bucket.host[:port]")
        return Place(bucket)

    def build(self) -> Adapter:
        return _S3(self, library("obstore", "s3"), library("obstore.store", "s3"))


class _S3:
    def __init__(self, settings: S3Settings, obstore: Any, stores: Any) -> None:
        self.shared = settings.shared
        self._obstore = obstore
        self._prefix = settings.prefix
        # Connects at the first request: a bucket that is down does not keep a sidecar down.
        self._store = stores.S3Store(**_arguments(settings))

    def open(self, arena: Bytes) -> None:
        self._pool = ThreadPoolExecutor(_HEADS_AT_ONCE, thread_name_prefix="s3-head")

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def store(self, name: ObjectName, record: Bytes) -> None:
        with _translated():
            # In one request: what a broken multipart upload leaves behind stays, and is paid for.
            self._obstore.put(self._store, self._key(name), record.data, use_multipart=False)

    def load(self, name: ObjectName, record: Bytes) -> None:
        with _translated():
            reply = self._obstore.get(self._store, self._key(name))
            if reply.meta["size"] != record.nbytes:
                raise Corrupt("length", f"{reply.meta['size']} bytes")
            record[:] = np.frombuffer(reply.bytes(), np.uint8)

    def find(self, names: Sequence[ObjectName]) -> list[int | None]:
        return list(self._pool.map(self._size, names))

    def _size(self, name: ObjectName) -> int | None:
        try:
            with _translated():
                return int(self._obstore.head(self._store, self._key(name))["size"])
        except Missing:
            return None

    def delete(self, names: Sequence[ObjectName]) -> None:
        self._remove([self._key(name) for name in names])

    def _remove(self, keys: list[str]) -> None:
        with _translated():
            self._obstore.delete(self._store, keys)

    def scan(self) -> Iterator[list[Found]]:
        for objects in self._list(self._prefix):
            paths = [item["path"].removeprefix(self._prefix + "/") for item in objects]
            yield [
                Found(name, item["size"], item["last_modified"].timestamp())
                for item, path in zip(objects, paths, strict=True)
                if (name := parse_path(path)) is not None
            ]

    def _list(self, prefix: str) -> Iterator[list[Any]]:
        with _translated():
            yield from self._obstore.list(self._store, prefix, chunk_size=512)

    def set_aside(self, name: ObjectName, reason: str) -> bool:
        kept = self._quarantine(name)
        self.delete([name])
        return kept

    def _quarantine(self, name: ObjectName) -> bool:
        place = self._prefix + "-quarantine"
        try:
            with _translated():
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


def _arguments(settings: S3Settings) -> dict[str, Any]:
    """What is not given here, obstore takes from AWS's environment variables."""
    place = settings.place()
    given = {
        "endpoint": place.endpoint,
        "region": settings.s3_region,
        "access_key_id": settings.aws_access_key_id,
        "secret_access_key": settings.aws_secret_access_key,
    }
    seconds = settings.timeout_seconds
    return {
        "bucket": place.bucket,
        "virtual_hosted_style_request": place.in_host,
        **{key: value for key, value in given.items() if value},
        # A record has a checksum of its own; signing a SHA-256 of it takes longer than sending it.
        "unsigned_payload": True,
        "client_options": {
            "timeout": timedelta(seconds=seconds),
            "connect_timeout": timedelta(seconds=min(_CONNECT_SECONDS, seconds)),
            "allow_http": (place.endpoint or "").startswith("http:"),
        },
        # Once more for a connection that was lost, and not after a request that timed out.
        "retry_config": {"max_retries": 1, "retry_timeout": timedelta(seconds=seconds / 2)},
    }


@contextmanager
def _translated() -> Iterator[None]:
    """What obstore raises, as TierError."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, OSError) as error:
        raise _failure(error) from None


def _failure(error: Exception) -> TierError:
    text = str(error)
    line = text.partition("\n")[0][:300]
    status = _STATUS.search(text)
    if "NoSuchBucket" in text:
        return TierError("no_bucket", line)
    if isinstance(error, FileNotFoundError):
        return Missing()
    if status is not None:
        return (NoSpace if status[1] == "507" else TierError)(f"http_{status[1]}", line)
    if "Timeout" in text or "TimedOut" in text:
        return TierError("timeout", line)
    return TierError("connection" if "Connect" in text else "s3", line)
