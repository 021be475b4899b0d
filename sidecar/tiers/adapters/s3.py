"""Settings of the adapter type `s3`: a bucket of S3, or of a server that speaks its protocol."""

import os
import re
from datetime import timedelta
from typing import Annotated, Any, ClassVar, NamedTuple

from msgspec import Meta

from sidecar.tiers.adapters.client_library import library
from sidecar.tiers.adapters.s3_bucket import Bucket
from sidecar.tiers.base import Adapter, AdapterUnusable
from sidecar.tiers.settings import AdapterSettings, adapter

_CONNECT_SECONDS = 2.0
_AUTHORITIES = "AWS_CA_BUNDLE"  # certificates, for a server whose authority is a private one
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{2,254}")
_URL = re.compile(r"(https?)://[^/\s]+/?")
_AWS_HOST = re.compile(r"(.+)\.(s3[.-][a-z0-9.-]*amazonaws\.com(?:\.cn)?)")


class Place(NamedTuple):
    """Where a bucket is; without an endpoint it is at AWS."""

    bucket: str
    endpoint: str | None = None
    in_host: bool = False
    """The bucket's name is part of the host's."""


@adapter("s3")
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
                "max_capacity_gb cannot be enforced in a bucket that others write to: "
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
        host = self.s3_endpoint.removeprefix("s3://").rstrip("/")
        if "/" in host:
            raise ValueError("s3_endpoint is s3://bucket or s3://bucket.host[:port]")
        if self.bucket or "." not in host:
            if self.disable_tls:
                raise ValueError("disable_tls needs the host: s3://bucket.host[:port]")
            return Place(self.bucket or host)
        scheme = "http" if self.disable_tls else "https"
        at_aws = _AWS_HOST.fullmatch(host)
        bucket = at_aws[1] if at_aws else host.partition(".")[0]
        if at_aws and "." in bucket:  # whose name no certificate of AWS's covers
            return Place(bucket, f"{scheme}://{at_aws[2]}")
        return Place(bucket, f"{scheme}://{host}", in_host=True)

    def build(self) -> Adapter:
        obstore, stores = library("obstore", "s3"), library("obstore.store", "s3")
        arguments, authorities = _arguments(self), os.environ.get(_AUTHORITIES)
        if authorities:
            arguments["client_options"]["root_certificate"] = _read(authorities)
        try:
            store = stores.S3Store(**arguments)
            one_by_one = stores.S3Store(**arguments, disable_bulk_delete=True)
        except ValueError as error:
            what = f"{_AUTHORITIES}={authorities}: " if authorities else ""
            raise AdapterUnusable(f"s3: {what}{' '.join(str(error).split())}") from None
        return Bucket(obstore, store, one_by_one, prefix=self.prefix, shared=self.shared)


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


def _read(authorities: str) -> bytes:
    try:
        with open(authorities, "rb") as file:
            return file.read()
    except OSError as error:
        raise AdapterUnusable(f"s3: {_AUTHORITIES}={authorities}: {error.strerror}") from None
