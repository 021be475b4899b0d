"""HTTP requests that ask for a lot, or hold a lot: workers and probes do not notice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.raw import RawClient, RawWorker, make_key
from tests.support.server import Server, free_port, wait_until


def checksums(server: Server, **body: object) -> tuple[int, str]:
    return server.request("/cache/checksums", {"chunk_size": 4, **body})


def test_checksums_are_those_of_the_blocks(server: Server, worker: RawWorker) -> None:
    data, ids = worker.pool.data, [3, 1, 2, 60, 5]
    chunks = [np.array(ids[:4]), np.array(ids[4:])]
    told = checksums(server, instance_id=worker.instance, block_ids=ids)
    whole = [hashlib.md5(data[:, chunk].tobytes()).hexdigest() for chunk in chunks]
    assert (told[0], json.loads(told[1])["chunk_checksums"]) == (200, whole)
    told = checksums(server, instance_id=worker.instance, block_ids=ids, layerwise=True)
    by_layer = {
        f"layer_{n}": [hashlib.md5(layer[chunk].tobytes()).hexdigest() for chunk in chunks]
        for n, layer in enumerate(data)
    }
    assert (told[0], json.loads(told[1])["chunk_checksums"]) == (200, by_layer)


@pytest.mark.parametrize("ids", [[5] * 1000, [1, 2, 1]], ids=len)
def test_checksums_of_one_block_again_and_again(
    server: Server, worker: RawWorker, ids: list[int]
) -> None:
    code, text = checksums(server, instance_id=worker.instance, block_ids=ids)
    assert (code, json.loads(text)["detail"]) == (400, "a block id is there twice")


def test_prefetches_of_more_tokens_than_the_wire_takes(server: Server, worker: RawWorker) -> None:
    """Eight at once."""
    registered = server.instances()
    body = {"model_name": worker.model, "world_size": 1, "token_ids": [1] * 2_000_000}
    text = json.dumps(body, separators=(",", ":")).encode()
    head = "POST /cache/prefetches HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    address = ("127.0.0.1", server.http_port)
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
        for peer in peers:
            peer.settimeout(60)
            with contextlib.suppress(ConnectionError):  # one of too many: refused at once
                peer.sendall(head.encode() + text)
        for peer in peers:
            with contextlib.suppress(ConnectionError):
                assert peer.recv(12) in (b"HTTP/1.1 400", b"HTTP/1.1 503", b"")
    assert server.instances() == registered
    assert "did not run" not in server.stderr()
    assert server.healthy()


@pytest.fixture
def narrow(
    new_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Server]:
    """A server with an L2 and all its ports, that may have 256 descriptors, and begins with 128."""
    command = f"prlimit --nofile=128:256 {sys.executable} -m sidecar serve"
    monkeypatch.setenv("KV_SIDECAR_SERVER_CMD", command)
    spec = {"type": "fs", "base_path": str(tmp_path / "l2"), "min_free_gb": 0}
    ports = ["--prometheus-port", str(free_port())]
    for option in ("--kv-events-endpoint", "--kv-events-replay-endpoint"):
        ports += [option, f"tcp://127.0.0.1:{free_port()}"]
    yield new_server("--l2-adapter", json.dumps(spec), *ports).start()


def listening(server: Server) -> list[int]:
    """The TCP ports that its process listens on."""
    assert server.process is not None
    inodes = {file.stat().st_ino for file in Path(f"/proc/{server.process.pid}/fd").iterdir()}
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [int(row[1][-4:], 16) for row in rows if row[3] == "0A" and int(row[9]) in inodes]


def test_more_connections_than_there_are_descriptors(narrow: Server) -> None:
    """Files of the L2 are still opened, probes answered, and the log says little."""
    assert narrow.process is not None
    limits = Path(f"/proc/{narrow.process.pid}/limits").read_text()
    assert "Max open files            256                  256" in limits
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(RawClient(narrow.url))
        worker = RawWorker(client, "narrow", 1)
        worker.register()
        ports = listening(narrow)
        assert len(ports) == 5
        for port in ports:
            for _ in range(400):  # KV events' ports close what is too much as it comes
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
        assert narrow.healthy()
        tokens = list(range(128))
        key = make_key(tokens, 0, 128, model="narrow")
        assert worker.store(key, range(1, 9))[1] is True
        written = "lmcache_mp_l2_transfer_bytes_total"
        wait_until(lambda: narrow.metrics().total(written, direction="store"), "written to L2")
        wait_until(lambda: not narrow.metrics().total("lmcache_mp_num_queued_l2_stores"), "all")
        assert narrow.request("/cache/clear", {"tier": "l1"})[0] == 200
        assert worker.lookup({**key, "worker_id": None}) == 2
        worker.close()
    assert len(narrow.stderr()) < 10_000
