"""The two ends of the native door have their messages from two places, and mean the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from connectors.native import wire as client
from sidecar.wire import native as server

BY_NAME = {operation.name: operation for operation in server.NATIVE}
SLOTS, HASH = [1, 2**31 - 1], bytes(range(32))
ASKED: dict[str, Any] = {
    client.ATTACH: client.Attach(
        engine="e", incarnation=bytes(16), model="m", ranks=2, groups=3, object_bytes=4096,
        chunk_tokens=16, identity=bytes(32),
    ),
    client.JOIN: client.Join(
        engine="e", incarnation=bytes(16), rank=1, ranks=2, object_bytes=4096, layout=bytes(32)
    ),
    client.MAPPED: client.Mapped(member=1, server=bytes(16)),
    client.PING: client.Ping(session=1),
    client.RESERVE: client.Reserve(session=1, count=client.MOST_ITEMS),
    client.PUBLISH: client.Publish(session=1, request="r/0", items=[(0, HASH, 7), (2, HASH, 9)]),
    client.RETURN: client.Return(session=1, slots=SLOTS),
    client.LOOKUP: client.Lookup(
        session=1,
        request="r/0",
        budget_ms=900,
        groups=[client.Wanted(group=1, windowed=True, load=False, hashes=[HASH, HASH[:16]])],
    ),
    client.FINISH: client.Finish(session=1, requests=[("r/0", True)]),
    client.RESUME: client.Resume(session=1, slots=SLOTS, requests=["r/0"]),
    client.DESCRIBE: client.Describe(session=1, items=[(0, HASH, b"text")]),
    client.HOLDINGS: client.ReadHoldings(session=1, begin=True),
    client.DETACH: client.Detach(session=1),
}  # fmt: skip
ANSWERED = {
    client.ATTACH: (client.Attached, server.Attached(3, bytes(16), True, "why", 8192)),
    client.JOIN: (client.Joined, server.Joined(3, bytes(16), "name", 4096, "why")),
    client.PING: (client.Pong, server.Pong(bytes(16), True, True)),
    client.HOLDINGS: (
        client.Holdings,
        server.Holdings([(1, HASH, server.IN_L1 + server.IN_L2, b"text")], True, True, True),
    ),
}


def test_every_operation_is_known_to_both() -> None:
    assert set(ASKED) == set(BY_NAME)
    assert client.VERSION == server.VERSION and client.SLOT_BYTES == server.SLOT_BYTES
    assert (client.MISS, client.BELOW) == (server.MISS, server.BELOW)
    assert (client.IN_L1, client.IN_L2) == (server.IN_L1, server.IN_L2)
    assert client.MOST_DESCRIPTION == server.MOST_DESCRIPTION


@pytest.mark.parametrize("operation", ASKED)
def test_the_server_reads_what_the_client_writes(operation: str) -> None:
    payload = ASKED[operation]
    uid, name, frame = client.request(7, operation, payload)

    [read] = BY_NAME[operation].decode([frame])

    assert msgspec.msgpack.decode(uid) == 7 and msgspec.msgpack.decode(name) == operation
    assert msgspec.to_builtins(read) == msgspec.to_builtins(payload)


@pytest.mark.parametrize("operation", ANSWERED)
def test_the_client_reads_what_the_server_writes(operation: str) -> None:
    kind, answer = ANSWERED[operation]
    uid = msgspec.msgpack.encode(7)

    read = client.value([uid, b"", msgspec.msgpack.encode(answer)], kind)

    assert client.reply_uid([uid]) == 7
    assert msgspec.to_builtins(read) == msgspec.to_builtins(answer)
    no = client.value([uid, b"", BY_NAME[operation].negative or b""], kind)
    assert no is not None
    assert not any(getattr(no, field, 0) for field in ("session", "member", "begun", "more"))


def test_each_end_understands_one_that_does_not_speak_of_the_arena() -> None:
    encode = msgspec.msgpack.encode
    told = msgspec.msgpack.decode(encode(server.Attached(3, bytes(16), True, "", 8192)))
    newer = client.value([b"", b"", encode({**told, "what comes later": 1})], client.Attached)
    assert newer is not None and newer.arena_bytes == 8192
    del told["arena_bytes"]
    read = client.value([b"", b"", encode(told)], client.Attached)
    assert read is not None and read.session == 3
    assert read.arena_bytes // client.SLOT_BYTES > client.LAST_SLOT, "all that vLLM can name"


def test_the_client_reads_nothing_else() -> None:
    for frames in ([], [b"\xc1"], [msgspec.msgpack.encode("7")]):
        assert client.reply_uid(frames) is None
    for value in (b"", b"\xc1", msgspec.msgpack.encode({"session": "x"})):
        assert client.value([b"", b"", value], client.Attached) is None
    assert client.value([b"", b""], bool) is None
