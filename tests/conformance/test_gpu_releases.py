"""What older releases of the stock client say for a worker on a GPU, over the fake driver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lmcache", reason="the stock client is not installed")

from tests.support.fake_gpu import SHM
from tests.support.gpu_site import SOURCE, TARGET, gpu_server  # noqa: F401
from tests.support.gpu_worker import Event, GpuPool
from tests.support.old_clients import Process
from tests.support.releases import RELEASES
from tests.support.server import Server

TOKENS = list(range(1, 129))
INSTANCE = 4711


def descriptor(pool: GpuPool, layer: int) -> dict[str, Any]:
    """In JSON: bytes in hexadecimal."""
    described = pool.descriptor(layer)
    handle = [part.hex() if isinstance(part, bytes) else part for part in described["handle"]]
    return {**described, "handle": handle}


@pytest.fixture
def pool() -> Iterator[GpuPool]:
    made = GpuPool(as_torch=True, seed=5)
    yield made
    made.unlink()


def has_happened(event: str) -> bool:
    """Whether an importer of this handle finds an event that has happened."""
    name = bytes.fromhex(event).rstrip(b"\0").decode()
    return len(event) == 128 and (SHM / name).read_bytes() == b"\1"


@pytest.mark.parametrize("release", RELEASES)
def test_a_worker_on_a_gpu(gpu_server: Server, pool: GpuPool, release: str) -> None:  # noqa: F811
    tells_events = release < "0.5.5"
    client, done = Process(release, "old_gpu_client.py"), Event(done=True)
    tensors = [descriptor(pool, layer) for layer in range(len(pool.data))]
    client.call("start", gpu_server.url, f"gpu-{release}", INSTANCE, tensors)
    before = pool.data.copy()
    answers = [client.call("store", TOKENS, SOURCE, done.handle.hex())]
    assert client.call("lookup", TOKENS) == 2
    answers += [client.call("retrieve", TOKENS, TARGET, done.handle.hex())]
    assert [ok for _, ok in answers] == [True, True]
    before[:, TARGET] = before[:, SOURCE]
    assert np.array_equal(pool.data, before)
    # A "no" to a store: block ids that its memory does not have.
    answers += [client.call("store", TOKENS[::-1], [9999] * len(SOURCE), done.handle.hex())]
    assert answers[-1][1] is False
    for event, _ in answers:
        assert has_happened(event) if tells_events else event == ""
    client.call("end")
    client.close()
    done.unlink()
    gpu_server.assert_no_leases()
