"""Neighbours that register, and are not what they say or do not do what they should."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import sys
from collections.abc import Iterator

from tests.faults.campaign.requests import flood, packed, registered
from tests.faults.campaign.target import (
    CHUNK,
    ENGINE_ID,
    ENGINE_MODEL,
    HANDLE_ID,
    HANDLE_MODEL,
    Neighbour,
    Target,
)
from tests.support.hop import Hop
from tests.support.raw import EVENT, RawClient, make_key

_REGISTER = "register_kv_cache_engine_driven_context"
_UNREGISTER = "unregister_kv_cache_engine_driven_context"
_HONEST = ((HANDLE_MODEL, HANDLE_ID), (ENGINE_MODEL, ENGINE_ID))


def geometry(instance: int, model: str, hidden: int = 32, world: int = 1) -> dict[str, object]:
    """The registration of an engine-driven worker."""
    return {
        "instance_id": instance,
        "model_name": model,
        "world_size": world,
        "block_size": 16,
        "num_layers": 2,
        "hidden_dim_size": hidden,
        "dtype_str": "float16",
        "use_mla": True,
        "num_physical_slots": CHUNK,
    }


@contextlib.contextmanager
def connections(target: Target, count: int) -> Iterator[list[RawClient]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(RawClient(target.url)) for _ in range(count)]


def speaks_for_others(target: Target) -> None:
    """Whatever can be said of an honest worker by somebody else."""
    with registered(target) as worker:
        client, blocks = worker.client, [[1, 2, 3, 4]]
        while target.goes_on():
            for model, instance in _HONEST:
                key = make_key([target.random.randrange(2**31)] * CHUNK, 0, CHUNK, model=model)
                client.call("ping", instance)
                client.call("store", key, instance, blocks, EVENT)
                client.call("retrieve", key, instance, blocks, EVENT, 0)
                client.call("prepare_store", key, instance)
                client.call("commit_store", key, instance, b"")
                client.call("commit_retrieve", key, instance)
                client.call("unregister_kv_cache", instance)
                client.call(_UNREGISTER, instance)
                client.call("end_session", f"{model}-0")


def registers_under_their_ids(target: Target) -> None:
    """Memory of its own, and a layout of its own, under an honest worker's id and model."""
    with registered(target) as worker:
        mine = worker.instance
        while target.goes_on():
            for model, instance in _HONEST:
                worker.instance, worker.model = instance, model
                worker.client.call("register_kv_cache", *worker.registration())
                worker.client.call(_REGISTER, geometry(instance, model, hidden=64))
        worker.instance = mine


def other_layouts_of_their_models(target: Target) -> None:
    """A dozen for each of the honest models, then gone, and again."""
    while target.goes_on():
        with connections(target, 2) as clients:
            for client, (model, _) in zip(clients, _HONEST, strict=True):
                for number in range(12):
                    client.call(_REGISTER, geometry(4_000_000 + number, model, 64 + number))
            for _ in range(20):
                clients[0].call("ping", None)


def registrations_by_the_thousand(target: Target) -> None:
    """As many as there may be, over hundreds of connections."""
    with connections(target, 300) as clients:
        numbers = itertools.count(5_000_000)
        while target.goes_on():
            for client in clients:
                if target.goes_on():
                    client.call(_REGISTER, geometry(next(numbers), "crowd"))


def never_commits(target: Target) -> None:
    """Prepares slots, one store after the other, as many as it is given."""
    with RawClient(target.url) as client:
        client.call(_REGISTER, geometry(6_000_000, "hoard", hidden=4096))
        for number in itertools.count(1):
            if not target.goes_on():
                return
            tokens = [number] * (8 * CHUNK)
            key = make_key(tokens, 0, len(tokens), model="hoard", request=f"h{number}")
            client.call("prepare_store", key, 6_000_000)


def stopped_while_it_writes(target: Target) -> None:
    """Its connection is cut and it is stopped between prepare and commit; it writes in the end."""
    hop = Hop(target.port)
    with _writer(target, hop.url) as process:
        process.send_signal(signal.SIGSTOP)
        hop.close()
        target.stay()
        process.send_signal(signal.SIGCONT)
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()


def killed_while_it_writes(target: Target) -> None:
    """Over and over."""
    while target.goes_on():
        with _writer(target, target.url) as process:
            process.kill()


@contextlib.contextmanager
def _writer(target: Target, url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has prepared slots of an honest model, and has not written to them."""
    instance = str(7_000_000 + target.random.randrange(10**6))
    program = [sys.executable, "-m", "tests.support.engine_worker", url, instance, "writer", "8"]
    process = subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


def layouts_by_the_hundred(target: Target) -> None:
    """256 layouts of one model with a world of 1,024, and lookups of it."""
    with connections(target, 32) as clients:
        for client, number in zip(itertools.cycle(clients), range(256), strict=False):
            client.call(_REGISTER, geometry(3_000_000 + number, "crowd", 1 + number, world=1024))
        tokens = packed(range(256 * CHUNK))
        key = make_key([], 0, 256 * CHUNK, model="crowd", worker=None, world=1024)
        while target.goes_on():
            key |= {"request_id": f"c{target.random.random()}", "token_ids": tokens}
            flood(clients[0], [clients[0].frames("lookup", key, 1)], target)


ROWS: dict[str, Neighbour] = {
    "256 layouts of one model": layouts_by_the_hundred,
    "a stranger that speaks for others": speaks_for_others,
    "other memory under their ids": registers_under_their_ids,
    "other layouts of their models": other_layouts_of_their_models,
    "thousands of registrations": registrations_by_the_thousand,
    "a worker that never commits": never_commits,
    "a worker stopped while it writes": stopped_while_it_writes,
    "workers killed while they write": killed_while_it_writes,
}
