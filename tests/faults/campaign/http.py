"""Neighbours on the admin port."""

from __future__ import annotations

import contextlib
import json
import socket
import time

from tests.faults.campaign.requests import registered
from tests.faults.campaign.target import HANDLE_ID, HANDLE_MODEL, Neighbour, Target


def _connect(target: Target) -> socket.socket:
    return socket.create_connection(("127.0.0.1", target.http_port), timeout=5)


def _request(path: str, body: bytes = b"", method: str = "POST") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def _ask_again_and_again(target: Target, request: bytes, peers: int) -> None:
    """Over `peers` connections at once; the answers are thrown away."""
    while target.goes_on():
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            streams = [stack.enter_context(_connect(target)) for _ in range(peers)]
            for stream in streams:
                stream.sendall(request)
            for stream in streams:
                stream.settimeout(1.0)
                stream.recv(1000)


def idle_connections(target: Target) -> None:
    """More than a server is usually given descriptors."""
    with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
        for _ in range(1100):
            if target.goes_on():
                stack.enter_context(_connect(target))
        target.stay()


def pipelines_that_are_not_read(target: Target) -> None:
    """The largest answer there is, asked for thousands of times over each connection."""
    request = _request("/metrics", method="GET")
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(_connect(target)) for _ in range(63)]
        for stream in streams:
            stream.setblocking(False)
        while target.goes_on():
            for stream in streams:
                with contextlib.suppress(OSError):
                    stream.send(request * 100)
            time.sleep(0.01)


def long_prefetches(target: Target) -> None:
    """Eight at once, in bodies of 10 MiB."""
    body = {"model_name": HANDLE_MODEL, "world_size": 1, "token_ids": [1] * 3_000_000}
    text = json.dumps(body, separators=(",", ":")).encode()
    _ask_again_and_again(target, _request("/cache/prefetches", text), 8)


def checksums_of_one_block(target: Target) -> None:
    """Of the neighbour's own memory, and of an honest worker's, a thousand times each."""
    with registered(target) as worker:
        for instance in (worker.instance, HANDLE_ID):
            body = {"instance_id": instance, "block_ids": [5] * 1000, "chunk_size": 4}
            request = _request("/cache/checksums", json.dumps(body).encode())
            _ask_again_and_again(target, request, 4)


def clears(target: Target) -> None:
    """The L1 is emptied over and over, and what it held is loaded from L2 again."""
    _ask_again_and_again(target, _request("/cache/clear", b'{"tier": "l1"}'), 1)


ROWS: dict[str, Neighbour] = {
    "1,100 idle HTTP connections": idle_connections,
    "HTTP pipelines that are not read": pipelines_that_are_not_read,
    "prefetches of three million tokens": long_prefetches,
    "checksums of one block a thousand times": checksums_of_one_block,
    "the L1 cleared again and again": clears,
}
