"""An S3 server that refuses what a right is missing for: a front on loopback before a real one."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_NOT_BUILT = b"<Error><Code>NotImplemented</Code><Message>not here</Message></Error>"
_HOP = {"connection", "transfer-encoding", "content-length", "host", "expect"}


@dataclass
class S3Front:
    """Listens on `port`, for the server on port `behind`. What `refused` names is refused.

    `bulk`: POST ?delete is answered 501. `delete`: the right to delete is missing, one by one
    and in bulk, where each key has its AccessDenied. `list`: so is the right to list, without
    which an absent key looks forbidden. `read`, `write`: 403 to GET and HEAD, to PUT.
    """

    port: int
    behind: int
    refused: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)


@contextmanager
def s3_front(port: int) -> Iterator[S3Front]:
    """A front before the server at 127.0.0.1:`port`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    front = S3Front(server.server_address[1], port)
    server.front = front  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield front
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        front: S3Front = self.server.front  # type: ignore[attr-defined]
        query = parse_qs(urlsplit(self.path).query, keep_blank_values=True)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bulk = self.command == "POST" and "delete" in query
        front.requests.append("BULK" if bulk else self.command)
        if bulk and "bulk" in front.refused:
            self._answer(501, _NOT_BUILT)
        elif bulk and "delete" in front.refused:
            self._answer(200, _each_denied(body))
        elif self._lacks_right(front.refused, query):
            self._answer(403, _DENIED)
        else:
            self._forward(front, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _lacks_right(self, refused: set[str], query: dict[str, list[str]]) -> bool:
        right = {"DELETE": "delete", "PUT": "write", "GET": "read", "HEAD": "read"}
        lists = self.command == "GET" and "list-type" in query
        return ("list" if lists else right.get(self.command)) in refused

    def _forward(self, front: S3Front, body: bytes) -> None:
        behind = http.client.HTTPConnection("127.0.0.1", front.behind)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        # A client that takes this for a proxy asks for a whole URL.
        path = urlsplit(self.path)._replace(scheme="", netloc="").geturl()
        behind.request(self.command, path, body, headers)
        reply = behind.getresponse()
        data = reply.read()
        behind.close()
        if reply.status == 404 and "list" in front.refused and self.command in ("GET", "HEAD"):
            self._answer(403, _DENIED)
            return
        kept = [(k, v) for k, v in reply.getheaders() if k.lower() not in _HOP]
        length = reply.getheader("Content-Length") or str(len(data))
        self._answer(reply.status, data, kept, length)

    def _answer(
        self,
        status: int,
        data: bytes,
        headers: list[tuple[str, str]] | None = None,
        length: str | None = None,
    ) -> None:
        self.send_response_only(status)
        for key, value in headers or [("Content-Type", "application/xml")]:
            self.send_header(key, value)
        self.send_header("Content-Length", length or str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _each_denied(body: bytes) -> bytes:
    keys = [part.partition(b"</Key>")[0] for part in body.split(b"<Key>")[1:]]
    errors = b"".join(
        b"<Error><Key>%s</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>" % k
        for k in keys
    )
    return b'<?xml version="1.0" encoding="UTF-8"?><DeleteResult>' + errors + b"</DeleteResult>"
