"""`kv-sidecar wait` for models, before commands, and beside a supervisord."""

import json
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sidecar.commands.wait import unready
from tests.support.server import REPO, wait_until


class Models(BaseHTTPRequestHandler):
    """An OpenAI server with one model, which is healthy too."""

    def do_GET(self) -> None:
        body = {"data": [{"id": "large"}]} if self.path == "/v1/models" else {"status": "healthy"}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Models) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_answer_that_breaks_off_is_a_reason() -> None:
    def answer(server: socket.socket) -> None:
        client, _ = server.accept()
        with client:
            client.recv(4096)
            client.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 99\r\n\r\n{")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert "503" in unready(url, "", 10)
        thread.join()


@pytest.mark.parametrize("timeout", ["nan", "inf", "-1"])
def test_a_wait_has_an_end(timeout: str) -> None:
    done = wait("--timeout", timeout)
    assert (done.returncode, "no number of seconds" in done.stderr) == (2, True)


def wait(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sidecar", "wait", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=REPO)


def test_a_model_that_is_listed(url: str) -> None:
    assert wait("--url", url, "--model", "large", "--timeout", "0").returncode == 0


def test_a_model_that_is_not(url: str) -> None:
    done = wait("--url", url, "--model", "small", "--timeout", "0")
    assert done.returncode == 1
    assert done.stderr == (
        f"kv-sidecar: {url} is not healthy after 0 s: it lists large, not small\n"
    )


def test_the_command_takes_its_place(url: str) -> None:
    done = wait("--url", url, "--", "sh", "-c", "echo $0 $1; exit 7", "a b", "c")
    assert (done.returncode, done.stdout) == (7, "a b c\n")


def test_no_command_runs_before_a_server_that_is_not_there() -> None:
    done = wait("--url", "http://127.0.0.1:1", "--timeout", "0", "--", "echo", "ran")
    assert (done.returncode, done.stdout) == (1, "")


def test_a_command_that_is_not_there(url: str) -> None:
    done = wait("--url", url, "--", "/no/such/program")
    assert done.returncode == 127
    assert done.stderr == "kv-sidecar: /no/such/program: No such file or directory\n"


def test_supervisor_and_program_go_together() -> None:
    done = wait("--program", "x")
    assert done.returncode == 2
    assert done.stderr == "kv-sidecar: --supervisor and --program go together\n"


@contextmanager
def supervised(command: str) -> Iterator[str]:
    """The socket of a supervisord that runs `command` as the program `server`."""
    with tempfile.TemporaryDirectory(prefix="kvs") as directory:
        socket, config = Path(directory, "socket"), Path(directory, "supervisord.conf")
        config.write_text(
            f"[unix_http_server]\nfile={socket}\n"
            f"[supervisord]\nlogfile={directory}/log\npidfile={directory}/pid\n"
            "[rpcinterface:supervisor]\n"
            "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
            f"[program:server]\ncommand={command}\nstartsecs=0\nautorestart=false\n"
        )
        daemon = [sys.executable, "-m", "supervisor.supervisord", "-n", "-s", "-c", str(config)]
        with subprocess.Popen(daemon, stderr=subprocess.DEVNULL) as process:
            wait_until(socket.exists, "supervisord")
            yield str(socket)
            process.terminate()


def test_the_exit_code_of_what_died() -> None:
    with supervised("sh -c 'exit 5'") as socket:
        flags = ("--url", "http://127.0.0.1:1", "--supervisor", socket, "--program", "server")
        done = wait(*flags, "--timeout", "50")
    assert done.returncode == 5
    assert done.stderr.startswith("kv-sidecar: server has ended with exit code 5; http://")


def test_what_still_runs_is_waited_for() -> None:
    with supervised("sleep 60") as socket:
        flags = ("--url", "http://127.0.0.1:1", "--supervisor", socket, "--program", "server")
        done = wait(*flags, "--timeout", "0.3")
    assert done.returncode == 1
    assert done.stderr.endswith(" is not healthy after 0.3 s: Connection refused\n")


def test_a_supervisord_that_has_gone() -> None:
    flags = ("--url", "http://127.0.0.1:1", "--supervisor", "/no/socket", "--program", "server")
    done = wait(*flags, "--timeout", "50")
    assert done.returncode == 1
    assert "server at /no/socket" in done.stderr
