"""A sandbox for the commands of the pages."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest

from tests.docs.sandbox import Sandbox


class _OpenAI(BaseHTTPRequestHandler):
    """A server that lists the pages' model."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "MODEL"}]}).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def openai_port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _OpenAI) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture
def sandbox(openai_port: int) -> Iterator[Sandbox]:
    with TemporaryDirectory(prefix="kvdocs") as root:
        yield Sandbox(Path(root), openai_port)
