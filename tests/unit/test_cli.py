"""The client subcommands, against a small HTTP server."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sidecar import __version__
from sidecar.cache import segment
from sidecar.cli import main
from tests.support.server import REPO, wait_until
from tests.support.signals import inherited


class Fake(ThreadingHTTPServer):
    """Answers every path with `status` and `body`; after `turns` requests it is healthy."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.body: object = {"status": "healthy"}
        self.paths: list[str] = []
        self.turns: int | None = None
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.server.turns is not None and len(self.server.paths) > self.server.turns:
            self.server.status, self.server.body = 200, {"status": "healthy"}
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(json.dumps(self.server.body).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[Fake]:
    server = Fake()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def closed_url() -> str:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        return f"http://127.0.0.1:{server.server_port}"


def test_status_as_json_is_the_reply(fake: Fake, capsys: pytest.CaptureFixture[str]) -> None:
    fake.body = {"is_healthy": True}
    assert main(["status", "--url", fake.url + "/", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"is_healthy": True}
    assert fake.paths == ["/status"]


def test_status_fails_with_the_words_of_the_server(
    fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.status, fake.body = 503, {"error": "the wire loop has not answered for 5 s"}
    assert main(["status", "--url", fake.url]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"kv-sidecar: no status from {fake.url}: the wire loop has not answered for 5 s\n"
    )


def test_status_without_a_server_is_one_line_and_one_for_each_l1_that_is_kept(
    closed_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = f"kv-sidecar: no status from {closed_url}: Connection refused\n"
    monkeypatch.setattr(segment, "kept", list)
    assert main(["status", "--url", closed_url]) == 1
    assert capsys.readouterr().err == line
    monkeypatch.setattr(segment, "kept", lambda: [segment.Kept("node", 2 << 30, 543.2)])
    assert main(["status", "--url", closed_url]) == 1
    assert capsys.readouterr().err == line + (
        "kv-sidecar: an L1 is kept for the next server of --shm-name node: 2 GiB, for 9m 3s more\n"
    )


def test_wait_returns_once_the_server_is_healthy(fake: Fake) -> None:
    fake.status, fake.body, fake.turns = 503, {"status": "unhealthy", "reason": "starting"}, 2
    assert main(["wait", "--url", fake.url, "--timeout", "30"]) == 0
    assert fake.paths == ["/healthcheck"] * 3


def test_wait_gives_up_with_the_last_reason(
    fake: Fake, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A busy machine may take longer for an answer than from one question to the next.
    monkeypatch.setattr("sidecar.commands.wait._POLL_SECONDS", 60.0)
    fake.status, fake.body = 503, {"status": "unhealthy", "reason": "the copy pool hangs"}
    assert main(["wait", "--url", fake.url, "--timeout", "0"]) == 1
    assert capsys.readouterr().err == (
        f"kv-sidecar: {fake.url} is not healthy after 0 s: the copy pool hangs\n"
    )


def test_wait_for_nobody_fails(closed_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["wait", "--url", closed_url, "--timeout", "0"]) == 1
    assert "Connection refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sevre"],
        ["status", "--rul", "x"],
        ["status", "--watch", "0"],
        ["status", "--watch", "--json"],
        ["wait", "now"],
        ["size", "config.json", "--", "x"],
    ],
)
def test_wrong_usage_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("kv-sidecar: ")
    assert captured.err.count("\n") == 1


def test_a_url_that_is_none_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "localhost"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"kv-sidecar {__version__}\n"


def test_serve_returns_what_the_server_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    app = types.ModuleType("sidecar.app")
    app.serve = lambda config: started.append(config.port) or 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sidecar.app", app)
    assert main(["serve", "--l1-size-gb", "1", "--port", "5777"]) == 1
    assert started == [5777]


def test_an_interrupt_is_no_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with inherited(signal.SIGINT, signal.SIG_DFL):
            waiting = _command("wait", "--url", url)
        silent.settimeout(30)
        peer, _ = silent.accept()
        waiting.send_signal(signal.SIGINT)
        _, complaint = waiting.communicate(timeout=30)
        peer.close()
    assert (waiting.returncode, complaint) == (130, "")


@pytest.mark.parametrize(
    ("imported", "arguments"),
    [("numpy", ["serve", "--l1-size-gb", "1"]), ("yaml", ["status"])],
)
def test_an_interrupt_while_it_imports_is_no_traceback(
    tmp_path: Path, imported: str, arguments: list[str]
) -> None:
    importing = tmp_path / "importing"
    slow = f"import pathlib, time\npathlib.Path({str(importing)!r}).touch()\ntime.sleep(600)\n"
    (tmp_path / f"{imported}.py").write_text(slow)
    with inherited(signal.SIGINT, signal.SIG_DFL):
        command = subprocess.Popen(
            [sys.executable, "-m", "sidecar", *arguments],
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(REPO)},
        )
    wait_until(importing.exists, "the command imports")
    command.send_signal(signal.SIGINT)
    assert command.communicate(timeout=30)[1] == b""
    assert command.returncode == -signal.SIGINT


def test_a_reader_that_has_seen_enough_is_no_traceback() -> None:
    printing = _command("serve", "--l1-size-gb", "1", "--print-config")
    assert printing.stdout is not None
    printing.stdout.close()
    assert printing.stderr is not None
    assert printing.stderr.read() == ""
    assert printing.wait(30) == 1


def _command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "sidecar", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPO,
    )
