"""`kv-sidecar doctor` against a running server, and against what only looks like one."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from sidecar.commands.doctor import live
from sidecar.commands.doctor.finding import Finding
from sidecar.commands.doctor.live import prompt
from sidecar.commands.doctor.surroundings import running_server
from tests.support.disks import records
from tests.support.doctor import around, doctor, only
from tests.support.server import SHM, Server, free_port, wait_until

MODES = ["lmcache_driven", "engine_driven"]


def of(server: Server) -> list[str]:
    """Where it listens, as options."""
    return ["--host", "127.0.0.1", "--port", str(server.port), "--http-port", str(server.http_port)]


def assert_nothing_left(server: Server) -> None:
    server.assert_no_leases()
    assert server.l1()["total_object_count"] == 0
    assert server.instances() == set()
    assert server.status()["active_sessions"] == 0
    # Those of a doctor in another test end with it.
    wait_until(lambda: not [*SHM.glob("lmcache_kv_doctor_*")], "no segment of a doctor")


def test_both_modes_work_and_nothing_stays(own_server: Server) -> None:
    code, findings = doctor("--l1-size-gb", "0.25", *of(own_server))
    assert code == 0
    for mode in MODES:
        assert findings[f"live {mode}"] == {
            "check": f"live {mode}",
            "level": "ok",
            "what": "64 tokens stored, found, retrieved, compared",
            "why": "",
            "do": "",
        }
    # Its own ports and its own share of /dev/shm are no news.
    assert "in use by a running kv-sidecar" in findings["port"]["what"]
    assert findings["/dev/shm"]["level"] == "ok"
    assert own_server.metrics().total("lmcache_mp_num_finished_stores_total") == len(MODES)
    assert_nothing_left(own_server)


def test_nothing_stays_in_l2_either(new_server: Callable[..., Server], tmp_path: Path) -> None:
    disk = tmp_path / "l2"
    adapter = f'{{"type": "fs", "base_path": "{disk}", "min_free_gb": 0}}'
    server = new_server("--l2-adapter", adapter).start()
    for _ in range(3):
        assert only(check(server), "ok"), server.stderr()

    def empty() -> bool:
        (state,) = server.status()["storage_manager"]["l2_adapters"]
        busy = state["queued_stores"] + state["inflight_stores"]
        return not busy and not records(disk)

    wait_until(empty, "L2 empty again")
    assert_nothing_left(server)


@pytest.mark.parametrize("mode", MODES)
def test_only_the_modes_that_the_server_allows(
    mode: str, new_server: Callable[..., Server]
) -> None:
    server = new_server("--supported-transfer-mode", mode, "--null-block-id", "1").start()
    found = check(server)
    assert [(f.check, f.level) for f in found] == [(f"live {mode}", "ok")], found


def test_without_its_admin_port_what_was_stored_is_told_of(own_server: Server) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    findings = list(live.check(around(*of(own_server)), nobody))
    assert [f.level for f in findings] == ["ok", "warning"] * 2
    assert "could not be removed" in findings[1].what
    own_server.assert_no_leases()


def test_a_server_on_a_unix_socket(new_server: Callable[..., Server], tmp_path: Path) -> None:
    where = f"ipc://{tmp_path}/mp"
    server = new_server("--host", where).start()
    options = ["--host", where, *of(server)[2:]]
    findings = list(live.check(around(*options), server.http))
    assert [f.level for f in findings] == ["ok", "ok"]


def test_an_l1_without_room(
    new_server: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompt, "_ROOM_SECONDS", 0.1)
    server = new_server(l1_size_gb=1 / 2**20).start()  # 1 KiB: less than an object
    findings = check(server)
    assert [f.level for f in findings] == ["problem", "problem"]
    assert all("there is no room for it" in f.what for f in findings)
    assert_nothing_left(server)


def test_nobody_there_is_no_problem() -> None:
    (found,) = live.check(around("--host", "127.0.0.1", "--port", str(free_port())), "http://x")
    assert found.level == "warning"
    assert "Connection refused" in found.what


def test_what_listens_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = ("--host", "127.0.0.1", "--port", str(silent.getsockname()[1]))
        findings = list(live.check(around(*options), "http://127.0.0.1:1"))
    assert [f.level for f in findings] == ["problem", "problem"]
    assert findings[0].what == "get_chunk_size was not answered within 0.3 s"


Answers = dict[str, object]
HONEST: Answers = {
    "get_chunk_size": 16,
    "store": [b"", True],
    "query_prefetch_status": 1,
    "retrieve": [b"", True],
}


@pytest.fixture
def liar() -> Iterator[Callable[[Answers], str]]:
    """Starts a server that answers every operation as told, and keeps nothing; its port."""
    context, threads = zmq.Context(), []

    def serve(router: zmq.Socket[bytes], answers: Answers) -> None:
        while True:
            try:
                who, uid, operation, *_ = router.recv_multipart()
            except zmq.ContextTerminated:
                router.close(linger=0)
                return
            name = msgspec.msgpack.decode(operation)
            value = [msgspec.msgpack.encode(answers[name])] if name in answers else []
            router.send_multipart([who, uid, operation, *value])

    def start(answers: Answers) -> str:
        router = context.socket(zmq.ROUTER)
        port = router.bind_to_random_port("tcp://127.0.0.1")
        threads.append(threading.Thread(target=serve, args=(router, answers)))
        threads[-1].start()
        return str(port)

    yield start
    context.term()
    for thread in threads:
        thread.join(30)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({}, "other bytes came back than were stored"),
        ({"store": [b"", False]}, "the server refused to store; its log says why"),
        ({"query_prefetch_status": 0}, "what was stored is not found, or there is no room for it"),
        ({"retrieve": [b"", False]}, "the server refused to retrieve; its log says why"),
        ({"retrieve": {"not": "a pair"}}, "the server refused to retrieve; its log says why"),
        ({"get_chunk_size": "many"}, "the server's chunk size is 'many'"),
        ({"get_chunk_size": 2**40}, "the server's chunk size is 1099511627776"),
    ],
)
def test_a_server_that_lies_to_a_handle_worker(
    answers: Answers,
    said: str,
    liar: Callable[[Answers], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prompt, "_ROOM_SECONDS", 0.1)
    found = lied_to(liar({**HONEST, **answers}), "lmcache_driven")
    assert (found.level, found.what) == ("problem", said)
    assert list(SHM.glob("lmcache_kv_doctor_*")) == []


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "the server offers no shared memory"),
        ({"shm_name": "", "pool_size": 0}, "the server offers no shared memory"),
        ({"shm_name": "../../etc/passwd", "pool_size": 10}, "the server offers no shared memory"),
        ({"shm_name": "not_there", "pool_size": 10}, "/dev/shm/not_there: No such file"),
    ],
)
def test_a_server_that_lies_to_an_engine_driven_worker(
    address: object, said: str, liar: Callable[[Answers], str]
) -> None:
    answers = {**HONEST, "register_kv_cache_engine_driven_context": address}
    found = lied_to(liar(answers), "engine_driven")
    assert found.level == "problem"
    assert found.what.startswith(said)


@pytest.mark.parametrize("offset", [-1, 4096 - 255, 2**63 - 1, "0", None])
def test_a_place_outside_of_the_arena_is_not_touched(
    offset: object, liar: Callable[[Answers], str]
) -> None:
    arena = SHM / "lmcache_l1_pool_doctor_test"
    arena.write_bytes(bytes(4096))
    slot = {"offset": offset, "length": 256, "shape": [1], "dtype": "float16"}
    answers: Answers = {
        **HONEST,
        "register_kv_cache_engine_driven_context": {"shm_name": arena.name, "pool_size": 4096},
        "prepare_store": {"context": {"slots": [slot], "chunk_indices": [0]}},
    }
    try:
        found = lied_to(liar(answers), "engine_driven")
        assert found.what == "the server gave no slot for a chunk; its log says why"
        assert arena.read_bytes() == bytes(4096)
    finally:
        arena.unlink()


def check(server: Server) -> list[Finding]:
    """The live checks alone, told by the server which modes there are."""
    surroundings = around(*of(server), server=running_server(around(*of(server)).config))
    return list(live.check(surroundings, server.http))


def lied_to(port: str, mode: str) -> Finding:
    options = ("--host", "127.0.0.1", "--port", port, "--supported-transfer-mode", mode)
    return next(iter(live.check(around(*options), "http://127.0.0.1:1")))
