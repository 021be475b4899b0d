"""SIGKILL at every step of L2, again and again over one directory: hits are right or misses.

KV_SIDECAR_CRASH_ROUNDS is the number of kills of an L2 alone (default 240).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.l2_victim import POINTS
from tests.support.l2 import L2Worker, fs_flags
from tests.support.raw import RawClient
from tests.support.server import REPO, Server

ROUNDS = int(os.environ.get("KV_SIDECAR_CRASH_ROUNDS", "240"))
SERVER_ROUNDS = 8
NUMBERS = range(24)
DELETES = {"before a delete", "in a delete"}


@pytest.mark.timeout(120 + ROUNDS * 3)
@pytest.mark.parametrize(
    ("capacity", "sync"), [(0, "none"), (24, "full")], ids=["unlimited", "evicting"]
)
def test_an_l2_that_is_killed(tmp_path: Path, capacity: int, sync: str) -> None:
    """`l2_victim` says what must be so after each kill and at the end."""
    arguments = [str(tmp_path / "l2"), str(ROUNDS // 2), "7", str(capacity), sync]
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.l2_victim", *arguments],
        cwd=REPO, env=os.environ | {"PYTHONPATH": str(REPO)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-8000:]
    killed = json.loads(done.stdout)["killed"]
    # Only with a capacity is anything deleted.
    assert killed.keys() == set(POINTS) - (set() if capacity else DELETES)


def test_a_server_that_is_killed_under_stores(
    new_server: Callable[..., Server], tmp_path: Path
) -> None:
    """Same ports, same directory, same worker: what comes back is what was stored."""
    server = new_server(*fs_flags(tmp_path / "l2"))
    chance = random.Random(1)
    hits = 0
    for _ in range(SERVER_ROUNDS):
        server.start()
        with RawClient(server.url) as client:
            worker = L2Worker(client, server)
            hits += sum(worker.check(number) for number in NUMBERS)
            server.assert_no_leases()
            for number in chance.sample(NUMBERS, len(NUMBERS)):
                worker.send_store(number)
            time.sleep(chance.random() * 0.3)
            server.kill()
            worker.pool.unlink()
    server.start()
    assert not list((tmp_path / "l2" / ".tmp").iterdir())
    with RawClient(server.url) as client:
        worker = L2Worker(client, server)
        for number in NUMBERS:
            worker.store(number)
            assert worker.check(number) == worker.chunks
        worker.close()
    server.assert_no_leases()
    assert hits, "nothing has survived a single kill: this has tested nothing"
