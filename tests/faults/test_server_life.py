"""The server's own ends and starts: signals, crashes, names and ports already taken."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.victim import BLOCKS, pool, request_tokens
from tests.support.raw import EVENT, NoReply, RawClient, RawWorker, make_key
from tests.support.server import REPO, SHM, Server, free_port, wait_until
from tests.support.signals import inherited

MakeServer = Callable[..., Server]
ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


@contextlib.contextmanager
def load(server: Server) -> Iterator[threading.Event]:
    """Stores and retrieves from a thread; the event is set once they are under way."""
    stop, under_way = threading.Event(), threading.Event()

    def run() -> None:
        with RawClient(server.url) as client:
            worker = RawWorker(client, "load", 1, pool())
            worker.register()
            number = 0
            while not stop.is_set():
                tokens = request_tokens(number)
                key = make_key(tokens, 0, len(tokens), model="load", request=f"r{number}")
                client.send(client.frames("store", key, 1, [BLOCKS], EVENT))
                client.send(client.frames("retrieve", key, 1, [BLOCKS], EVENT, 0))
                number += 1
                if number > 30:
                    under_way.set()
                    with contextlib.suppress(NoReply):
                        client.receive(0.5)
                        client.receive(0.5)
            worker.pool.unlink()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield under_way
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load(own_server: Server, number: signal.Signals) -> None:
    """Exit code 0, and nothing left in /dev/shm."""
    with load(own_server) as under_way:
        assert under_way.wait(60)
        assert own_server.segments()
        assert own_server.process is not None
        own_server.process.send_signal(number)
        assert own_server.wait() == 0
    assert own_server.segments() == []
    assert "Traceback" not in own_server.stderr()


def test_a_second_signal_ends_it_at_once(own_server: Server) -> None:
    with load(own_server) as under_way:
        assert under_way.wait(60)
        assert own_server.process is not None
        for _ in range(2):
            own_server.process.send_signal(signal.SIGTERM)
        own_server.wait()
    assert own_server.segments() == []


@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
def test_a_signal_as_soon_as_there_is_shared_memory(
    new_server: MakeServer, number: signal.Signals
) -> None:
    """Long before the server is ready: it starts, stops, and leaves nothing."""
    server = new_server()
    with inherited(number, signal.SIG_DFL):
        server.spawn()
    wait_until(server.segments, "shared memory")
    assert server.process is not None
    server.process.send_signal(number)
    assert server.wait() == 0, server.stderr()
    assert server.segments() == []
    assert "Traceback" not in server.stderr()


def test_under_nohup_a_hangup_means_nothing(new_server: MakeServer) -> None:
    with inherited(signal.SIGHUP, signal.SIG_IGN):
        server = new_server().start()
    assert server.process is not None
    server.process.send_signal(signal.SIGHUP)
    assert server.healthy()
    assert server.terminate() == 0


# The preflight starts 11 threads and ends them; then come the copy thread, ...
@pytest.mark.parametrize("granted", [5, 11, 13])
def test_a_thread_that_cannot_be_had(granted: int, tmp_path: Path) -> None:
    """Whichever it is: the server ends, and nothing of it is left."""
    name = f"kvtest_threads_{os.getpid()}_{granted}"
    code = f"""
import itertools, sys, threading
from sidecar.cli import main
number, start = itertools.count(), threading.Thread.start
def refuse(thread):
    if next(number) >= {granted}:
        raise RuntimeError("can't start new thread")
    start(thread)
threading.Thread.start = refuse
sys.exit(main(sys.argv[1:]))
"""
    flags = ["--l1-size-gb", "0.1", "--shm-name", name, "--max-workers", "1"]
    flags += ["--port", str(free_port()), "--http-port", str(free_port())]
    ended = subprocess.run(
        [sys.executable, "-c", code, "serve", *flags], text=True, capture_output=True, cwd=REPO,
        env=os.environ | {"PYTHONPATH": str(REPO)}, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert [path for path in SHM.iterdir() if name in path.name] == []
    if granted < 11:
        assert f"only {granted} of 11 threads can be started" in ended.stderr
        assert "Traceback" not in ended.stderr


def test_sigterm_while_process_1_of_a_container_still_imports(tmp_path: Path) -> None:
    """The kernel lets no signal end it that it has no handler for."""
    namespace = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*namespace, "true"], check=False).returncode:
        pytest.skip("this machine allows no PID namespace of our own")
    importing = tmp_path / "importing"
    slow = f"import pathlib, time\npathlib.Path({str(importing)!r}).touch()\ntime.sleep(600)\n"
    (tmp_path / "blake3.py").write_text(slow)
    path = os.pathsep.join([str(tmp_path), str(REPO)])
    serve = [sys.executable, "-m", "sidecar", "serve", "--l1-size-gb", "0.1"]
    outer = subprocess.Popen([*namespace, *serve], env=os.environ | {"PYTHONPATH": path})
    try:
        wait_until(importing.exists, "the server imports")
        first = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text()
        os.kill(int(first), signal.SIGTERM)
        assert outer.wait(30) == 128 + signal.SIGTERM
    finally:
        outer.kill()
        outer.wait()


@pytest.mark.parametrize("streams", [">&- 2>&-", ">/dev/full 2>/dev/full"])
def test_standard_streams_that_cannot_be_written(
    new_server: MakeServer, monkeypatch: pytest.MonkeyPatch, streams: str
) -> None:
    """Nobody hears its warning, and that is all. No file of the cache gets their numbers."""
    shell = f"""sh -c 'exec "$0" -m sidecar serve "$@" {streams}' {sys.executable}"""
    monkeypatch.setenv("KV_SIDECAR_SERVER_CMD", shell)
    monkeypatch.setenv("KV_SIDECAR_NO_OPTION", "1")
    server = new_server().start()
    assert server.process is not None
    for number in (1, 2):
        target = os.readlink(f"/proc/{server.process.pid}/fd/{number}")
        assert target in ("/dev/null", "/dev/full")
    assert server.terminate() == 0


def test_sigterm_while_somebody_sends_a_body(own_server: Server) -> None:
    with socket.create_connection(("127.0.0.1", own_server.http_port)) as peer:
        head = b"POST /cache/clear HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20\r\n\r\n{"
        peer.sendall(head)
        assert own_server.healthy()
        assert own_server.terminate() == 0
    assert "Traceback" not in own_server.stderr()


def test_requests_in_flight_are_answered_before_the_end(own_server: Server) -> None:
    """What was accepted before the signal gets its reply."""
    with RawClient(own_server.url) as client:
        worker = RawWorker(client, "pending", 1, pool())
        worker.register()
        requests = []
        for number in range(20):
            tokens = request_tokens(number)
            key = make_key(tokens, 0, len(tokens), model="pending", request=f"r{number}")
            requests.append(client.frames("store", key, 1, [BLOCKS], EVENT))
        ping = client.frames("ping", None)
        for frames in [*requests, ping]:
            client.send(frames)
        replies = []
        while not replies or replies[-1][0] != ping[0]:
            replies.append(client.receive())
        assert own_server.process is not None
        own_server.process.send_signal(signal.SIGTERM)
        while len(replies) < len(requests) + 1:
            replies.append(client.receive())
        assert own_server.wait() == 0
        worker.pool.unlink()


def test_a_crash_and_a_new_start(new_server: MakeServer) -> None:
    """The killed server's segment is found by its free lock and removed."""
    server = new_server().start()
    stale = server.segments()
    assert stale
    inode = stale[0].stat().st_ino
    server.kill()
    assert server.segments() == stale
    server.start()
    assert stale[0].stat().st_ino != inode
    with RawClient(server.url) as client:
        worker = RawWorker(client, "after", 1)
        worker.register()
        worker.prove(list(range(128)), server.chunk_size)
        worker.close()
    assert server.terminate() == 0
    assert server.segments() == []


def test_any_start_removes_the_stale_and_only_the_stale(new_server: MakeServer) -> None:
    """A dead server's segment goes; a living one's stays, and so does a stranger's."""
    dead, living, next_one = new_server().start(), new_server().start(), new_server()
    stranger = SHM / f"lmcache_l1_pool_stranger_{os.getpid()}"
    stranger.write_bytes(b"not ours")
    try:
        dead.kill()
        next_one.start()
        assert not any(path.name.startswith("lmcache_l1_pool") for path in dead.segments())
        assert any(path.name.startswith("lmcache_l1_pool") for path in living.segments())
        assert stranger.read_bytes() == b"not ours"
    finally:
        stranger.unlink()


def failed_start(server: Server) -> str:
    """The one line that a server which cannot start leaves on stderr; exit code 1.

    Beside what it says of others' segments in /dev/shm.
    """
    server.spawn()
    assert server.wait() == 1, server.stderr()
    lines = server.stderr().splitlines()
    (line,) = [
        line for line in lines if "dead server" not in line and "belong to others" not in line
    ]
    return line


def test_a_name_that_is_taken(own_server: Server, new_server: MakeServer) -> None:
    second = new_server(shm_name=own_server.shm_name)
    segments = own_server.segments()
    assert own_server.shm_name in failed_start(second)
    assert own_server.segments() == segments
    assert own_server.healthy()


def test_a_port_that_is_taken(own_server: Server, new_server: MakeServer) -> None:
    second = new_server(port=own_server.port)
    assert str(own_server.port) in failed_start(second)
    assert second.segments() == []
    assert own_server.healthy()


def test_an_http_port_that_is_taken(
    own_server: Server, new_server: MakeServer, tmp_path: Path
) -> None:
    taken = str(own_server.http_port)
    second = new_server("--http-port", taken, "--host", f"ipc://{tmp_path}/mp")
    assert taken in failed_start(second)
    assert second.segments() == []
    assert list(tmp_path.glob("mp*")) == []
    assert own_server.healthy()


def test_shared_memory_too_small(new_server: MakeServer) -> None:
    """The line says how much there is and where."""
    room = os.statvfs(SHM)
    free_gib = room.f_bavail * room.f_frsize / 2**30
    server = new_server(l1_size_gb=round(free_gib) + 1000)
    line = failed_start(server)
    assert "/dev/shm" in line
    amounts = [float(text) for text in re.findall(r"(\d+(?:\.\d+)?) GiB", line)]
    assert any(abs(amount - free_gib) < 1 for amount in amounts), line
    assert server.segments() == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--chunk-size", "0"),
        ("--chunk-size", "many"),
        ("--port", "70000"),
        ("--l1-size-gb", "-1"),
        ("--eviction-trigger-watermark", "1.5"),
        ("--no-such-flag",),
        ("--shm-name", "../evil"),
        ("--config", "/no/such/file.yaml"),
    ],
    ids=" ".join,
)
def test_bad_settings(new_server: MakeServer, flags: tuple[str, ...]) -> None:
    """One line and exit code 2."""
    server = new_server(*flags)
    server.spawn()
    assert server.wait() == 2, server.stderr()
    lines = [line for line in server.stderr().splitlines() if line.strip()]
    assert len(lines) == 1 and flags[0].lstrip("-") in lines[0], lines


def test_a_unix_socket(new_server: MakeServer, tmp_path: Path) -> None:
    """`ipc://` with the port appended, as the stock client does; for the owner only."""
    server = new_server("--host", f"ipc://{tmp_path}/mp").start()
    path = Path(f"{tmp_path}/mp:{server.port}")
    assert path.stat().st_mode & 0o777 == 0o600
    with RawClient(f"ipc://{path}") as client:
        worker = RawWorker(client, "unix", 1)
        worker.register()
        worker.prove(list(range(128)), server.chunk_size)
        worker.close()
    assert server.terminate() == 0
    assert not path.exists()
