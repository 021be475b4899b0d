"""KV events over the sidecar's own socket, read as vLLM's consumers read them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from tests.support.hashes import hashes_of
from tests.support.raw import RawClient, RawWorker, make_key
from tests.support.server import CHUNK_SIZE, Server, wait_until

MakeServer = Callable[..., Server]
# What versions of vLLM add to BlockStored and BlockRemoved, all of it optional; those between add
# nothing (vllm/distributed/kv_events.py of 0.24.0 to 0.33.0).
ADDED = {
    "0.24": (
        ("extra_keys", "group_idx", "kv_cache_spec_kind", "kv_cache_spec_sliding_window"),
        ("group_idx",),
    ),
    "0.26": (("locality",), ("locality",)),
    "0.29": (("ownership",), ("ownership",)),
    "0.30": (("session_id",), ()),
    "0.33": (("lookahead_token_ids",), ()),
}
MODEL, END = "some/model", (-1).to_bytes(8, "big", signed=True)
Event = dict[str, Any]


def tokens_of(number: int, chunks: int = 2) -> list[int]:
    return [number, *range(1, chunks * CHUNK_SIZE)]


class Site:
    """A server with an L2 that publishes, a worker of it, and a reader."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server = server
        self.client = RawClient(server.url)
        self.client.greet()
        self.worker = RawWorker(self.client, MODEL, 7)
        self.worker.register()
        self.context = zmq.Context()
        self.sub = self.context.socket(zmq.SUB)
        self.sub.connect(f"ipc://{folder}/events")
        self.sub.subscribe("kv@")
        self.ask = self.context.socket(zmq.DEALER)
        self.ask.connect(f"ipc://{folder}/replay")
        self.frames: list[list[bytes]] = []
        # Never one twice: of what L2 has already nothing is told when it is stored again.
        self._others = itertools.count(1000)

    def store(self, number: int, chunks: int = 2) -> list[bytes]:
        tokens = tokens_of(number, chunks)
        key = make_key(tokens, 0, len(tokens), model=MODEL, request=f"r{number}")
        blocks = list(range(1, 1 + len(tokens) // 16))
        assert self.worker.store(key, blocks)[1] is True
        return hashes_of(tokens)

    def read(self) -> None:
        while self.sub.poll(0):
            self.frames.append(self.sub.recv_multipart())

    def wait_until_heard(self) -> None:
        """A subscription takes a moment; what was sent before is not for it."""

        def heard() -> bool:
            self.store(next(self._others), 1)
            self.read()
            return bool(self.frames)

        wait_until(heard, "the subscription to count")
        last = set(self.store(next(self._others), 1))  # L2 is written in the order of the stores
        wait_until(lambda: self.of("BlockStored", "STORAGE") >= last, "the last of these")
        self.frames.clear()

    def events(self) -> list[Event]:
        batches = [msgspec.msgpack.decode(payload)[1] for _, _, payload in self.frames]
        return [event for events in batches for event in events]

    def of(self, kind: str, medium: str) -> set[bytes]:
        self.read()
        events = [e for e in self.events() if (e["type"], e["medium"]) == (kind, medium)]
        return {each for event in events for each in event["block_hashes"]}

    def replay(self, begins: int) -> list[list[bytes]]:
        self.ask.send_multipart([b"", begins.to_bytes(8, "big")])
        found = []
        while True:
            assert self.ask.poll(30_000)
            empty, topic, number, payload = self.ask.recv_multipart()
            assert empty == b""
            if number == END:
                assert (topic, payload) == (b"", b"")
                return found
            found.append([topic, number, payload])

    def close(self) -> None:
        self.worker.close()
        self.client.close()
        self.context.destroy(linger=0)


@pytest.fixture(params=[()])
def site(new_server: MakeServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    server = new_server(
        *request.param,
        *("--kv-events-endpoint", f"ipc://{tmp_path}/events"),
        *("--kv-events-replay-endpoint", f"ipc://{tmp_path}/replay"),
        *("--kv-events-pod", "node-1"),
        *("--l2-adapter", f'{{"type": "fs", "base_path": "{tmp_path}/l2", "num_workers": 1}}'),
    ).start()
    made = Site(server, tmp_path)
    yield made
    made.close()


def test_stored_and_removed_chunks_of_both_media_are_published(site: Site) -> None:
    site.wait_until_heard()
    hashes = site.store(1)
    for medium in ("CPU", "STORAGE"):
        wait_until(lambda m=medium: site.of("BlockStored", m) == set(hashes), medium)
    stored = [e for e in site.events() if e["medium"] == "CPU"]
    assert [e["parent_block_hash"] for e in stored] == [None, hashes[0]]
    assert [e["token_ids"] for e in stored] == [
        tokens_of(1)[at : at + CHUNK_SIZE] for at in (0, CHUNK_SIZE)
    ]
    assert {e["block_size"] for e in stored} == {CHUNK_SIZE}
    assert {topic for topic, _, _ in site.frames} == {b"kv@node-1@" + MODEL.encode()}
    assert site.server.request("/cache/clear", body={"tier": "l1"})[0] == 200
    wait_until(lambda: site.of("BlockRemoved", "CPU") >= set(hashes), "the clear of the L1")
    assert not site.of("BlockRemoved", "STORAGE")
    assert site.server.request("/cache/clear", body={"tier": "l2"})[0] == 200
    wait_until(lambda: site.of("BlockRemoved", "STORAGE") >= set(hashes), "that of L2")
    # A cleared cache says nothing of what the engines have in their GPUs.
    assert {e["type"] for e in site.events()} == {"BlockStored", "BlockRemoved"}


def test_missed_batches_are_replayed(site: Site) -> None:
    site.wait_until_heard()
    for number in range(3):
        site.store(number)
    expected = {each for number in range(3) for each in hashes_of(tokens_of(number))}
    wait_until(lambda: site.of("BlockStored", "STORAGE") == expected, "all to be told")
    numbers = [int.from_bytes(number, "big") for _, number, _ in site.frames]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert site.replay(numbers[1]) == site.frames[1:]
    assert len(site.replay(0)) == numbers[-1] + 1
    assert site.replay(numbers[-1] + 1) == []
    # Nobody is worse off for a request that is none.
    site.ask.send_multipart([b"", b"x"])
    site.ask.send_multipart([b"nonsense"])
    assert site.replay(numbers[-1]) == site.frames[-1:]


@pytest.mark.parametrize("site", [("--kv-event-log-size", "4")], indirect=True)
def test_what_came_faster_than_it_could_be_told_is_a_gap(site: Site) -> None:
    """A reader sees that there is something that it cannot know, nor ask for."""
    site.wait_until_heard()
    many = site.store(1, chunks=7)
    last = site.store(2, chunks=1)
    wait_until(lambda: site.of("BlockStored", "STORAGE") >= set(last), "the last to be told")
    assert not site.of("BlockStored", "CPU") >= set(many)
    sent = site.replay(0)
    assert sent[-len(site.frames) :] == site.frames
    missing = int.from_bytes(sent[-1][1], "big") + 1 - len(sent)
    assert missing == site.server.metrics().total("lmcache_mp_kv_events_lost_total") > 0


def test_vllm_decodes_them(site: Site) -> None:
    kv_events = pytest.importorskip("vllm.distributed.kv_events")
    stored_and_removed(site)
    decoder = msgspec.msgpack.Decoder(type=kv_events.KVEventBatch)
    batches = [decoder.decode(payload) for _, _, payload in site.frames]
    kinds = {type(event) for batch in batches for event in batch.events}
    assert kinds == {kv_events.BlockStored, kv_events.BlockRemoved}
    assert abs(batches[0].ts - time.time()) < 3600


def test_every_version_of_vllms_decoder_takes_them(site: Site) -> None:
    stored_and_removed(site)
    for version in ADDED:
        decoder = msgspec.msgpack.Decoder(type=batch_type(version))
        batches = [decoder.decode(payload) for _, _, payload in site.frames]
        events = [event for batch in batches for event in batch.events]
        assert {type(event).__name__ for event in events} == {"BlockStored", "BlockRemoved"}
        assert {event.medium for event in events} == {"CPU", "STORAGE"}


def test_the_installed_vllm_has_the_format_of_its_version() -> None:
    kv_events = pytest.importorskip("vllm.distributed.kv_events")
    version = ".".join(metadata.version("vllm").split(".")[:2])
    known = max((v for v in ADDED if v <= version), default="")
    for theirs, ours in zip(
        (kv_events.BlockStored, kv_events.BlockRemoved), event_types(known), strict=True
    ):
        assert [(f.name, f.required) for f in msgspec.structs.fields(theirs)] == [
            (f.name, f.required) for f in msgspec.structs.fields(ours)
        ]


def stored_and_removed(site: Site) -> None:
    """Events of both kinds and both media in the site's frames."""
    site.wait_until_heard()
    hashes = site.store(5)
    for medium in ("CPU", "STORAGE"):
        wait_until(lambda m=medium: site.of("BlockStored", m) == set(hashes), medium)
    site.server.request("/cache/clear", body={"tier": "l1"})
    wait_until(lambda: site.of("BlockRemoved", "CPU") >= set(hashes), "the clear")


def event_types(version: str) -> tuple[type[Any], type[Any]]:
    """BlockStored and BlockRemoved as a version of vLLM reads them."""
    Hash = bytes | int
    stored: list[Any] = [
        ("block_hashes", list[Hash]), ("parent_block_hash", Hash | None),
        ("token_ids", list[int]), ("block_size", int), ("lora_id", int | None),
        ("medium", str | None), ("lora_name", str | None),
    ]  # fmt: skip
    removed: list[Any] = [("block_hashes", list[Hash]), ("medium", str | None)]
    for added, (to_stored, to_removed) in ADDED.items():
        if added <= version:
            stored += [(name, Any, None) for name in to_stored]
            removed += [(name, Any, None) for name in to_removed]
    return (
        msgspec.defstruct("BlockStored", stored, tag=True),
        msgspec.defstruct("BlockRemoved", removed, tag=True),
    )


def batch_type(version: str) -> type[Any]:
    stored, removed = event_types(version)
    fields = [("ts", float), ("events", list[stored | removed]), ("rank", int | None, None)]  # type: ignore[valid-type]
    return msgspec.defstruct("Batch", fields, array_like=True)


def test_after_a_restart_what_l2_has_is_told_when_it_is_found_again(site: Site) -> None:
    site.wait_until_heard()
    hashes = site.store(1)
    wait_until(lambda: site.of("BlockStored", "STORAGE") == set(hashes), "the chunks in L2")
    assert site.server.terminate() == 0
    site.server.start()
    site.client.greet()
    site.worker.register()
    site.wait_until_heard()
    tokens = tokens_of(1)
    key = make_key(tokens, 0, len(tokens), model=MODEL, request="again", worker=None)
    assert site.worker.lookup(key) == 2
    for medium in ("CPU", "STORAGE"):
        wait_until(lambda m=medium: site.of("BlockStored", m) >= set(hashes), medium)
    site.client.call("end_session", "again")
