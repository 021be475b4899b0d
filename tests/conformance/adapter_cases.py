"""Every L2 adapter with the JSON that reaches it, and what its backend cannot do."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sidecar.cache.keys import SpaceKey
from sidecar.tiers.base import Adapter, AdapterUnusable, Bytes, TierError
from sidecar.tiers.names import ObjectName, space_name
from sidecar.tiers.record import HEADER_BYTES, seal
from sidecar.tiers.types import parse
from tests.support import storage
from tests.support.faulty_adapter import FAULTY
from tests.support.mock_adapter import MOCK
from tests.support.server import free_port

PAGE = 4096
MIB = 1 << 20
DEADLINE = 300.0  # seconds until a call that should end counts as hung
QUARANTINED = 16  # objects that may be kept, in every backend
TIMEOUT = {"timeout_seconds": 2}

Spec = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """`spec(port, token)`: the JSON for a server at `port`, with nothing in it yet for `token`.

    `server` runs what it needs and yields its port, or for files a directory.
    """

    name: str
    server: Callable[[], AbstractContextManager[Any]]
    spec: Callable[[Any, str], Spec]
    overwrites: bool = True
    scans: bool = True
    knows_length: bool = True
    knows_sizes: bool = True
    keeps_bad: bool = True
    survives: bool = True
    """What is stored is there for the next adapter that is built from the same JSON."""


def build(spec: Spec) -> Adapter:
    """The adapter of `spec`, which is not open; skips where its library is not installed."""
    try:
        return parse(spec)[0].build()
    except AdapterUnusable as error:
        if " install " in str(error):
            pytest.skip(str(error))
        raise


@contextmanager
def opened(spec: Spec, arena: Bytes) -> Iterator[Adapter]:
    adapter = build(spec)
    try:
        adapter.open(arena)
    except AdapterUnusable as error:
        if " install " in str(error):
            pytest.skip(str(error))
        raise
    try:
        yield adapter
    finally:
        adapter.close()


def space_of(label: str) -> SpaceKey:
    """A space of this label's own."""
    return SpaceKey("org/model", 1, 0, label, bytes(range(16)))


def names(label: str, count: int) -> list[ObjectName]:
    """The same names for the same label."""
    space = space_name(space_of(label))
    return [ObjectName(space, number.to_bytes(32, "big")) for number in range(1, count + 1)]


def fill(record: Bytes, seed: int) -> None:
    record[:] = np.random.default_rng(seed).integers(0, 256, record.nbytes, np.uint8)


def sealed(record: Bytes, space: SpaceKey, name: ObjectName, seed: int = 0) -> int:
    """Make a record of random bytes; the length of its object, which ends within the last page."""
    fill(record, seed)
    length = record.nbytes - HEADER_BYTES - 100
    seal(record, space, name.hash, length, frozenset({3}))
    return length


def outcome(call: Callable[[], object]) -> object:
    """What `call` returns, or the TierError that it raises; fails if it does not end."""
    ended: list[object] = []

    def run() -> None:
        try:
            ended.append(call())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(DEADLINE)
    assert ended, "the call does not end"
    if isinstance(ended[0], BaseException) and not isinstance(ended[0], TierError):
        raise ended[0]
    return ended[0]


@contextmanager
def nothing() -> Iterator[int]:
    yield 0


@contextmanager
def directory() -> Iterator[Path]:
    # Not in /tmp: that may be memory, without O_DIRECT.
    with tempfile.TemporaryDirectory(prefix="kv-test-", dir="/var/tmp") as path:
        yield Path(path)


def port_of(
    server: Callable[[], AbstractContextManager[storage.Storage]],
) -> Callable[[], AbstractContextManager[int]]:
    @contextmanager
    def run() -> Iterator[int]:
        with server() as started:
            yield started.port

    return run


def s3(port: int, token: str, key: str = storage.S3RVER_KEY) -> Spec:
    return {
        "type": "s3", "bucket": storage.BUCKET, "endpoint_url": f"http://127.0.0.1:{port}",
        "s3_region": "us-east-1", "aws_access_key_id": key, "aws_secret_access_key": key,
        "prefix": token,
    }  # fmt: skip


def nixl_obj(port: int, token: str) -> Spec:
    params = {
        "bucket": storage.BUCKET, "endpoint_override": f"http://127.0.0.1:{port}",
        "scheme": "http", "region": "us-east-1", "access_key": "a", "secret_key": "b",
        "use_virtual_addressing": "false", "req_checksum": "required", "key_prefix": f"{token}/",
    }  # fmt: skip
    return {"type": "nixl_store", "backend": "OBJ", "backend_params": params}


def nixl_azure(port: int, token: str, key: str = storage.AZURE_KEY) -> Spec:
    account = storage.AZURE_ACCOUNT
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={key};"
        f"BlobEndpoint=http://127.0.0.1:{port}/{account};"
    )
    params = {
        "connection_string": connection, "container_name": storage.BUCKET,
        "key_prefix": f"{token}/",
    }  # fmt: skip
    return {"type": "nixl_store", "backend": "AZURE_BLOB", "backend_params": params}


def resp(port: int, token: str, **more: Any) -> Spec:
    return {"type": "resp", "host": "127.0.0.1", "port": port, "key_prefix": token, **more}


def mooncake(port: int, token: str, segment: int = 512 * MIB) -> Spec:
    return {
        "type": "mooncake_store", "local_hostname": f"127.0.0.1:{free_port()}",
        "metadata_server": "P2PHANDSHAKE", "master_server_address": f"127.0.0.1:{port}",
        "protocol": "tcp", "global_segment_size": segment, "local_buffer_size": "16MB",
    }  # fmt: skip


def fs(base: Path, token: str) -> Spec:
    return {"type": "fs", "base_path": str(base / token), "min_free_gb": 0}


def nixl_posix(base: Path, token: str) -> Spec:
    params = {"file_path": str(base / token)}
    spec = {"type": "nixl_store", "backend": "POSIX", "backend_params": params}
    return {**spec, "min_free_gb": 0}


def mock(_: int, token: str) -> Spec:
    return {
        "type": MOCK,
        "max_size_gb": 1,
        "mock_bandwidth_gb": 100,
    }


_BY_NIXL = {
    "scans": False, "knows_length": False, "knows_sizes": False,
    "keeps_bad": False,
}  # fmt: skip
CASES = [
    Case("fs", directory, fs),
    Case("nixl-posix", directory, nixl_posix),
    Case("nixl-obj", port_of(storage.moto), nixl_obj, **_BY_NIXL),
    Case("nixl-azure", port_of(storage.azurite), nixl_azure, **_BY_NIXL),
    Case("s3-moto", port_of(storage.moto), s3),
    # It does not unquote the source of a copy, so nothing can be kept.
    Case("s3-s3rver", port_of(storage.s3rver), s3, keeps_bad=False),
    Case("resp", port_of(storage.redis), resp),
    Case(
        "mooncake", port_of(storage.mooncake_master), mooncake, overwrites=False, scans=False,
        knows_sizes=False, keeps_bad=False, survives=False,
    ),
    Case("mock", nothing, mock, survives=False),
    Case(
        "fault-inject", nothing, lambda port, token: {
            "type": FAULTY, "inner": mock(port, token)
        }, survives=False,
    ),
]  # fmt: skip
