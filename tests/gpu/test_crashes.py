"""Workers killed in the middle of stores: the server lives, the GPU's memory comes back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.rig import Rig, round_trip
from tests.gpu.device import on_gpu, used_mib
from tests.support.layouts import FUSED
from tests.support.server import REPO, Server, shown, wait_until

pytestmark = pytest.mark.gpu

ROUNDS = int(os.environ.get("KV_SIDECAR_GPU_ROUNDS", "25"))
VICTIMS = 8  # in a round: starting one takes seconds
MIB = 128  # of a victim's blocks: it has stores of a third of a gigabyte under way
# The server gives up a connection that is gone for the registration grace, 2 s here.
REAP = ("--worker-reap-timeout-seconds", "2", "--worker-registration-grace-seconds", "2")


@pytest.fixture
def reaping(new_server: Callable[..., Server]) -> Server:
    return new_server(*REAP, l1_size_gb=4).start()


@pytest.fixture
def bystander(reaping: Server) -> Iterator[Rig]:
    rig = Rig(reaping, "bystander")
    yield rig
    rig.close()


def kill_some(server: Server, kind: str, count: int) -> None:
    """Start victims, and kill them once all are under way."""
    command = [sys.executable, "-m", "tests.gpu.victim", server.url, "victim", str(MIB), kind]
    victims = [
        subprocess.Popen(command, stdout=subprocess.PIPE, cwd=REPO, text=True) for _ in range(count)
    ]
    try:
        for victim in victims:
            assert victim.stdout is not None
            assert victim.stdout.readline() == "under way\n"
    finally:
        for victim in victims:
            victim.kill()
            victim.communicate()


def test_killed_in_the_middle_of_stores(reaping: Server, bystander: Rig) -> None:
    worker = bystander.worker(on_gpu(FUSED))
    round_trip(bystander, worker)
    level = used_mib()
    for _ in range(ROUNDS):
        kill_some(reaping, "stores", VICTIMS)
        wait_until(lambda: reaping.instances() == shown(worker.instance), "the dead forgotten")
        wait_until(lambda: used_mib() < level + 100, "the GPU's memory back", 10)
    reaping.assert_no_leases()
    bystander.scheduler().clear(force=True)
    round_trip(bystander, worker)


def test_killed_before_the_event(reaping: Server, bystander: Rig) -> None:
    """The event never happens: the others are served, and nobody waits for it on a stream."""
    worker = bystander.worker(on_gpu(FUSED))
    round_trip(bystander, worker)
    level = used_mib()
    tokens, blocks = bystander.tokens(3), bystander.blocks(worker, 3)
    for _ in range(3):
        kill_some(reaping, "spins", 1)
        assert worker.retrieve(tokens, blocks)
        wait_until(lambda: reaping.instances() == shown(worker.instance), "the dead forgotten")
        wait_until(lambda: used_mib() < level + 100, "the GPU's memory back", 60)
    # The end of a worker is not what its event waited for: nothing of it is published.
    assert reaping.metrics().total("lmcache_mp_l1_write_chunks_total") == 3


def test_an_illegal_address_in_the_child(
    new_server: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is replaced; lookups are answered meanwhile, and the cache is served again."""
    command = f"{sys.executable} -m tests.gpu.faulty serve"
    monkeypatch.setenv("KV_SIDECAR_SERVER_CMD", command)
    fault = tmp_path / "fault"
    monkeypatch.setenv("GPU_FAULT", str(fault))
    server = new_server().start()
    rig = Rig(server, "faulty")
    worker, tokens = rig.worker(on_gpu(FUSED)), rig.tokens(2)
    blocks = rig.blocks(worker, 2)
    assert worker.store(tokens, blocks)
    fault.touch()
    assert not worker.store(rig.tokens(2, 1), blocks)
    assert "700" in server.stderr()
    scheduler, answers = rig.scheduler(), list[bool]()

    def told() -> bool:
        if scheduler.lookup(tokens):  # nothing is a hit while nobody is registered
            scheduler.free(tokens, 0, len(tokens))
        answers.append(worker.ping(worker.instance))
        return answers[-2:] == [False, True]

    wait_until(told, "the worker is told to register again", 30)
    worker.register()
    assert scheduler.lookup(tokens) == 2
    assert worker.retrieve(tokens, blocks)
    rig.close()
