"""Every request gets exactly one answer of its type, whatever is wrong with it."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
import zmq

from sidecar.loop import Loop
from sidecar.wire.endpoint import DEFERRED, Endpoint, Refused, Request
from sidecar.wire.operations import OPERATIONS
from sidecar.wire.peers import Peers
from tests.support.server import wait_until

encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


class Server:
    def __init__(self, url: str) -> None:
        self.loop, self.refused, self.deferred, self.withheld = Loop(), [], [], []
        handlers: dict[str, Callable[..., Any]] = {
            "get_chunk_size": lambda request: 256,
            "end_session": lambda request, request_id: None,
            "ping": self._raise(RuntimeError("a bug")),
            "query_prefetch_status": self._raise(Refused("because")),
            "commit_retrieve": None,
            "noop": self._defer,
        }
        self.endpoint = Endpoint(
            Peers(),
            {k: v for k, v in handlers.items() if v},
            1 << 20,
            lambda operation, reason, detail: self.refused.append((operation, reason)),
            lambda operation, seconds: None,
            lambda request, reason: self.withheld.append(request),
            self.loop.post,
            self.loop.flows.start,
        )
        self.url = url
        self.endpoint.bind(url, 0o600)
        self.loop.add_reader(self.endpoint.fileno(), self.endpoint.on_readable)
        self.thread = threading.Thread(target=self.loop.run)
        self.thread.start()

    def _defer(self, request: Request) -> Any:
        self.deferred.append(request)
        return DEFERRED

    @staticmethod
    def _raise(error: Exception) -> Callable[..., Any]:
        def handler(*_: Any) -> None:
            raise error

        return handler

    def close(self) -> None:
        self.loop.post(self.loop.stop)
        self.thread.join(10)
        self.endpoint.close()


@pytest.fixture
def server(tmp_path) -> Iterator[Server]:
    server = Server(f"ipc://{tmp_path}/mp")
    yield server
    server.close()


@pytest.fixture
def connect(server: Server) -> Iterator[Callable[[int], Callable[..., list[bytes]]]]:
    """Connects a client that greets with an id of `get_chunk_size`; the result sends requests."""
    context = zmq.Context()

    def connect(greeting: int) -> Callable[..., list[bytes]]:
        socket = context.socket(zmq.DEALER)
        socket.connect(server.url)
        socket.setsockopt(zmq.RCVTIMEO, 10_000)

        def ask(*frames: bytes) -> list[bytes]:
            socket.send_multipart(frames)
            return socket.recv_multipart()

        ask.socket = socket  # type: ignore[attr-defined]
        assert decode(ask(b"\x00", encode(greeting))[2]) == 256
        return ask

    yield connect
    context.destroy(linger=0)


@pytest.fixture
def ask(connect) -> Callable[..., list[bytes]]:
    """A client of the newest generation."""
    return connect(21)


def test_uid_and_op_come_back_byte_for_byte(ask) -> None:
    for uid in (b"\x00", b"\xcd\x01\x00", b"\xcf" + bytes(8)):
        for op in (encode(21), encode("get_chunk_size")):
            assert ask(uid, op) == [uid, op, encode(256)]


def test_none_is_a_reply_without_a_value(ask) -> None:
    assert ask(b"\x01", encode(13), encode("request")) == [b"\x01", encode(13)]


def test_a_bug_a_refusal_and_a_bad_payload_answer_the_negative(ask, server: Server) -> None:
    assert decode(ask(b"\x01", encode(22), encode(None))[2]) is False
    assert decode(ask(b"\x01", encode(9), encode("r"))[2]) == 0
    assert decode(ask(b"\x01", encode(9), encode(5))[2]) == 0
    assert decode(ask(b"\x01", encode(9))[2]) == 0
    assert server.refused == [
        ("ping", "internal_error"),
        ("query_prefetch_status", "because"),
        ("query_prefetch_status", "bad_payload"),
        ("query_prefetch_status", "bad_payload"),
    ]


def test_what_is_not_served_or_unknown_is_answered_too(ask, server: Server) -> None:
    assert decode(ask(b"\x01", encode(27), *[b"\xc0"] * 5)[2]) == [b"", False]
    assert ask(b"\x01", encode("subscribe_kv_events"), *[b"\xc0"] * 4) == [
        b"\x01",
        encode("subscribe_kv_events"),
    ]
    assert ask(b"\x01", encode(99)) == [b"\x01", encode(99)]
    assert ask(b"\x01", b"\xff\xff") == [b"\x01", b"\xff\xff"]
    assert [reason for _, reason in server.refused] == [
        "not_served",
        "bad_payload",
        "unknown_operation",
        "unknown_operation",
    ]


def test_malformed_messages_cost_nobody_else_anything(ask, server: Server) -> None:
    for frames in ([b""], [b"x"], [b"\x01", b"", b"ack"], [b"\x01", b"", b"cancel"]):
        ask.socket.send_multipart(frames)
    assert decode(ask(b"\x02", encode(21))[2]) == 256


def test_a_message_of_very_many_frames_is_answered_and_not_kept(ask, server: Server) -> None:
    reply = ask(b"\x03", encode(9), *[b""] * 100_000)
    assert reply == [b"\x03", encode(9), encode(0)]
    assert server.refused == [("query_prefetch_status", "bad_payload")]
    assert decode(ask(b"\x04", encode("get_chunk_size"))[2]) == 256


def test_a_deferred_request_is_answered_once(ask, server: Server) -> None:
    ask.socket.send_multipart([b"\x07", encode(24)])
    assert decode(ask(b"\x08", encode(21))[2]) == 256  # others do not wait for it

    def finish() -> None:
        server.deferred[0].reply("OK")
        server.deferred[0].refuse("too late")

    server.loop.call(finish, 5)
    assert ask.socket.recv_multipart() == [b"\x07", encode(24), encode("OK")]
    assert decode(ask(b"\x09", encode(21))[2]) == 256


def test_a_peer_that_left_is_noticed(server: Server) -> None:
    context = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.connect(server.url)
    socket.send_multipart([b"\x01", encode(24)])
    wait_until(lambda: server.deferred, "the request has arrived")
    client = server.deferred[0].client
    assert server.loop.call(lambda: server.endpoint.is_connected(client), 5)
    socket.close(0)
    context.term()
    wait_until(
        lambda: not server.loop.call(lambda: server.endpoint.is_connected(client), 5), "it is gone"
    )
    assert not server.loop.call(lambda: server.deferred[0].reply("OK"), 5)


def test_the_identity_that_a_peer_gives_itself_means_nothing(server: Server) -> None:
    """Else it could take over, or keep out, another one's connection."""
    context = zmq.Context()
    for _ in range(2):
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, b"me")
        socket.connect(server.url)
        socket.send_multipart([b"\x01", encode(24)])
    wait_until(lambda: len(server.deferred) == 2, "both requests have arrived")
    assert server.deferred[0].client != server.deferred[1].client
    context.destroy(linger=0)


def test_a_request_that_is_dropped_is_refused(ask, server: Server) -> None:
    """Whoever had to answer it has failed: nobody waits for ever because of that."""
    ask.socket.send_multipart([b"\x07", encode(24)])
    wait_until(lambda: server.deferred, "the request has arrived")
    server.loop.call(server.deferred.clear, 5)
    assert ask.socket.recv_multipart() == [b"\x07", encode(24), encode("OK")]
    assert server.refused == [("noop", "internal_error")]


def test_a_unix_socket_is_private_and_not_stolen(server: Server, tmp_path) -> None:
    path = tmp_path / "mp"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError, match="in use"):
        Server(f"ipc://{path}")


def test_every_operation_has_an_encodable_negative() -> None:
    assert {"store", "retrieve", "lookup", "ping", "subscribe_kv_events"} <= set(OPERATIONS)
    for operation in OPERATIONS.values():
        if operation.negative is not None:
            decode(operation.negative)


def test_a_client_that_would_use_what_was_not_loaded_is_not_told_no_at_once(
    connect, server: Server
) -> None:
    """Up to 0.5.4 a failed retrieve is only logged. 15 is `prepare_retrieve` of 0.5.0."""
    ask = connect(18)
    ask.socket.send_multipart([b"\x01", encode(15), b"nonsense"])
    wait_until(lambda: server.withheld, "the refusal is withheld")
    server.loop.call(lambda: server.withheld[0].send_negative("now"), 5)
    _, _, value = ask.socket.recv_multipart()
    assert decode(value) == {"success": False, "data": b"", "context": {}}


def test_a_client_that_needs_an_event_is_told_no_with_one_or_not_at_once(
    connect, server: Server
) -> None:
    """0.5.0 imports the event of any answer to a store; without a GPU, whatever it sent itself."""
    ask = connect(18)
    key = {
        "model_name": "m", "world_size": 1, "worker_id": 0, "token_ids": [], "start": 0, "end": 0,
        "request_id": "r", "cache_salt": "",
    }  # fmt: skip
    store = [encode(key), encode(1), encode([[]])]
    _, _, value = ask(b"\x01", encode(3), *store, encode(b"stub"))
    assert decode(value) == [b"stub", False]
    ask.socket.send_multipart([b"\x02", encode(3), *store, encode(bytes(64))])
    wait_until(lambda: server.withheld, "the refusal is withheld")
