"""Frames that are no requests: each costs its sender a no, and nobody else anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.support.raw import EVENT, OPERATIONS, RawClient, RawWorker, decode, encode, make_key

TOKENS = list(range(128))
KEY = make_key(TOKENS, 0, 128, model="malformed")
LOOKUP = {**KEY, "worker_id": None}
NO_TRANSFER = [b"", False]
NOTHING = {"context": {"slots": [], "chunk_indices": []}}
MISS = {"success": False, "data": b"", "context": {}}
ENGINE = {
    "instance_id": 1,
    "model_name": "malformed",
    "world_size": 1,
    "block_size": 16,
    "num_layers": 2,
    "hidden_dim_size": 32,
    "dtype_str": "float16",
    "use_mla": True,
}
# Valid payloads (of an instance that nobody registered) and the answer that means "no".
VALID: dict[str, tuple[list[Any], Any]] = {
    "register_kv_cache": ([1, [], "malformed", 1, "vllm", {}, []], None),
    "unregister_kv_cache": ([1], None),
    "store": ([KEY, 1, [[1] * 8], EVENT], NO_TRANSFER),
    "retrieve": ([KEY, 1, [[1] * 8], EVENT, 0], NO_TRANSFER),
    "lookup": ([LOOKUP, 1], None),
    "query_prefetch_status": (["r"], 0),
    "wait_prefetch_status": (["r", 0.1], 0),
    "free_lookup_locks": ([LOOKUP, 1], None),
    "end_session": (["r"], None),
    "unregister_kv_cache_engine_driven_context": ([1], None),
    "prepare_store": ([KEY, 1], NOTHING),
    "commit_store": ([KEY, 1, b""], False),
    "prepare_retrieve": ([KEY, 1], MISS),
    "commit_retrieve": ([KEY, 1], True),
    "report_block_allocation": ([1, "malformed", []], None),
}
ANY_TYPE = [None, True, -1, 2**64 - 1, 1.5, "text", b"bytes", [], {}, [[]], {"a": 1}]


def request(raw: RawClient, operation: str, payloads: Sequence[bytes]) -> list[bytes]:
    """A request whose payload frames are given as they are."""
    return [*raw.frames(operation)[:2], *payloads]


@pytest.mark.parametrize("operation", VALID)
def test_wrong_payload_counts(raw: RawClient, operation: str) -> None:
    payloads, negative = VALID[operation]
    assert raw.call(operation) == negative
    for count in range(1, len(payloads) - 1):
        assert raw.call(operation, *payloads[:count]) == negative
    assert raw.call(operation, *payloads, 1, 2, 3) == negative
    assert raw.call(operation, *([1] * 200)) == negative


@pytest.mark.parametrize("operation", VALID)
def test_wrong_payload_types(raw: RawClient, operation: str) -> None:
    """Every value in every place."""
    payloads, negative = VALID[operation]
    for place in range(len(payloads)):
        for value in ANY_TYPE:
            assert raw.call(operation, *payloads[:place], value, *payloads[place + 1 :]) == negative


@pytest.mark.parametrize("operation", VALID)
def test_broken_encodings(raw: RawClient, operation: str) -> None:
    payloads, negative = VALID[operation]
    whole = [encode(value) for value in payloads]
    broken = [
        b"",
        whole[0][:-1],
        whole[0][: len(whole[0]) // 2],
        whole[0] + b"\x00",
        b"\xc1" * 10,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xa4\xff\xfe\xfd\xfc",
        b"\x91" * 20_000,
        b"\x81\xa1a" * 20_000,
    ]
    for frame in broken:
        reply = raw.exchange(request(raw, operation, [frame, *whole[1:]]))
        assert (decode(reply[2]) if len(reply) == 3 else None) == negative, frame[:16]


@pytest.mark.parametrize("operation", [0, -1, 999, 2**63, "no_such_operation", "", "x" * 5000])
def test_unknown_operations(raw: RawClient, operation: Any) -> None:
    assert len(raw.exchange(raw.frames(operation))) == 2
    assert len(raw.exchange(raw.frames(operation, 1, "two", [3]))) == 2


@pytest.mark.parametrize(
    "frame", [b"\xc0", b"\xc3", b"\xcb" + b"\0" * 8, b"\x90", b"\xc1", b"\xda"]
)
def test_operations_that_are_neither_number_nor_name(raw: RawClient, frame: bytes) -> None:
    assert len(raw.exchange([encode(77), frame])) == 2


def test_engine_registrations(raw: RawClient) -> None:
    """Refused or not, the answer has the two fields that the client reads."""
    hostile: dict[str, Sequence[Any]] = {
        "instance_id": [-1, 2**64 - 1, "1", None],
        "model_name": ["", "a@b", "x" * 100_000, 7, None],
        "world_size": [0, -1, 2**40, None],
        "block_size": [0, -16, 2**62],
        "num_layers": [0, -1, 2**62],
        "hidden_dim_size": [0, -1, 2**62],
        "dtype_str": ["", "object", "float999", "__class__", 16],
        "use_mla": ["yes", None],
        "num_physical_slots": [0, -1, 2**62, 1.5],
    }
    name = "register_kv_cache_engine_driven_context"
    for field, values in hostile.items():
        for value in values:
            answer = raw.call(name, ENGINE | {"num_physical_slots": 64, field: value})
            assert answer.keys() == {"shm_name", "pool_size"}, (field, value)
    for payload in ANY_TYPE:
        assert raw.call(name, payload).keys() == {"shm_name", "pool_size"}
    raw.call("unregister_kv_cache_engine_driven_context", 1)


def test_small_operations_answer_their_own_type(raw: RawClient) -> None:
    """Even when they are called wrongly."""
    for payloads in ([], [1], ["text", None, []]):
        assert type(raw.call("get_chunk_size", *payloads)) is int
        assert raw.call("noop", *payloads) == "OK"
        served = [] if payloads else ["kv_event_stream"]
        assert raw.call("get_experimental", *payloads) == served
    for value in ANY_TYPE:
        assert type(raw.call("ping", value)) is bool
        assert raw.call("clear", value) is None


def test_frames_that_have_no_answer(raw: RawClient, still_serves: Callable[[], None]) -> None:
    """Too few frames to know what to answer, and stream control: silence, and life goes on."""
    for frames in (
        [b""],
        [b"\x00"],
        [encode(5)],
        [encode(5), b""],
        [encode(5), b"", b"ack"],
        [encode(5), b"", b"cancel"],
        [encode(5), b"", b"\xff" * 100, b"more"],
        [b"", b"", b""],
    ):
        raw.send(frames)
    assert raw.call("ping", None) is True
    still_serves()


@pytest.mark.parametrize("uid", [b"", b"\x00", b"not msgpack \xff", b"\xc1", b"u" * 70_000])
def test_any_uid_is_echoed(raw: RawClient, uid: bytes) -> None:
    reply = raw.exchange([uid, encode(OPERATIONS["noop"])])
    assert reply[0] == uid and decode(reply[2]) == "OK"


def test_everything_survives_all_of_it(
    raw: RawClient, worker: RawWorker, still_serves: Callable[[], None]
) -> None:
    """The valid requests above, from a worker nobody knows, and then one that is known."""
    for operation, (payloads, negative) in VALID.items():
        assert raw.call(operation, *payloads) == negative
    worker.prove(TOKENS, 64)
    still_serves()
