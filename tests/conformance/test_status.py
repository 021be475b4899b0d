"""`kv-sidecar status` of a running server that somebody uses."""

from __future__ import annotations

import subprocess
import sys

from tests.support.raw import RawClient, RawWorker
from tests.support.server import REPO, Server, shown


def table(server: Server) -> list[str]:
    command = [sys.executable, "-m", "sidecar", "status", "--url", server.http]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_a_worker_and_its_hits_are_shown(own_server: Server) -> None:
    assert "no workers" in table(own_server)
    with RawClient(own_server.url) as client:
        client.greet()
        worker = RawWorker(client, "some-model", 4711)
        worker.register()
        worker.prove(range(1, 1 + 2 * own_server.chunk_size), own_server.chunk_size)
        lines = table(own_server)
        worker.close()
    (number,) = shown(4711)
    (row,) = [line.split() for line in lines if line.startswith(str(number))]
    mode = ["lmcache_driven", "0.5.5-0.5.6", "cpu"]
    assert row[:6] == [str(number), "some-model", "1", *mode]
    (hits,) = [line for line in lines if line.startswith("hits")]
    assert "100.0% of 128 tokens looked up since the start (100.0% L1, 0.0% L2)" in hits
    (l1,) = [line for line in lines if line.startswith("L1")]
    assert ", 2 objects, 0 being read" in l1
