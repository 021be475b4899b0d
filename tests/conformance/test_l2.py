"""The stock client over an L2: everything leaves the L1, and comes back the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conformance.rig import Rig, expect_moved
from tests.support.client import Scheduler, Worker
from tests.support.layouts import FUSED, KV_FIRST_NHD, LAYOUTS, MLA, Layout, merge, one_group
from tests.support.server import Server, wait_until

Blocks = list[list[int]]


class L2Rig(Rig):
    """A rig whose server can be made to forget its L1."""

    def forget(self) -> None:
        """Everything that was stored is in L2, and nowhere else."""
        wait_until(lambda: not self.total("num_queued_l2_stores"), "nothing queued")
        wait_until(lambda: not self.total("num_inflight_l2_stores"), "nothing being written")
        assert self.server.request("/cache/clear", {"tier": "l1"})[0] == 200
        assert self.server.l1()["total_object_count"] == 0

    def total(self, name: str, **labels: str) -> int:
        return int(self.server.metrics().total(f"lmcache_mp_{name}", **labels))

    def from_l2(self) -> int:
        return self.total("lookup_hit_l2_tokens_total") // self.chunk


@pytest.fixture(scope="module")
def l2_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("l2")
    spec = {"type": "fs", "base_path": str(directory / "objects"), "min_free_gb": 0}
    made = Server(directory, "--l2-adapter", json.dumps(spec))
    yield made.start()
    made.stop()


@pytest.fixture
def rig(l2_server: Server, request: pytest.FixtureRequest) -> Iterator[L2Rig]:
    made = L2Rig(l2_server, request.node.nodeid.split("::")[-1])
    yield made
    made.close()
    l2_server.assert_no_leases()


def there_and_back(rig: L2Rig, worker: Worker, scheduler: Scheduler, chunks: int = 3) -> None:
    """Store, forget, find, bring back to other blocks."""
    tokens, source = rig.tokens(chunks), rig.blocks(worker, chunks)
    target = rig.blocks(worker, chunks, first=20)
    origin, before_l2 = worker.cache.image(), rig.from_l2()
    assert worker.store(tokens, source)
    rig.forget()
    assert scheduler.lookup(tokens) == chunks
    before = worker.cache.image()
    assert worker.retrieve(tokens, target)
    expect_moved(worker, before, origin, source, target)
    assert rig.from_l2() - before_l2 == chunks


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_every_layout(rig: L2Rig, layout: Layout) -> None:
    there_and_back(rig, rig.worker(one_group(layout, seed=3)), rig.scheduler())


def test_both_modes(rig: L2Rig, mode: str) -> None:
    there_and_back(rig, rig.worker(mode=mode), rig.scheduler())


def test_groups(rig: L2Rig) -> None:
    cache = merge(one_group(KV_FIRST_NHD, seed=1), one_group(MLA, seed=2))
    there_and_back(rig, rig.worker(cache), rig.scheduler())


def test_ranks(rig: L2Rig, mode: str) -> None:
    ranks = [rig.worker(mode=mode, rank=rank, world=2) for rank in range(2)]
    scheduler, tokens = rig.scheduler(world=2), rig.tokens(2)
    blocks, target = rig.blocks(ranks[0], 2), rig.blocks(ranks[0], 2, first=20)
    for worker in ranks:
        assert worker.store(tokens, blocks)
    rig.forget()
    assert scheduler.lookup(tokens) == 2
    for worker in ranks:
        before = worker.cache.image()
        assert worker.retrieve(tokens, target)
        expect_moved(worker, before, before, blocks, target)


def test_a_rank_that_lacks_a_chunk_ends_the_prefix(rig: L2Rig) -> None:
    ranks = [rig.worker(rank=rank, world=2) for rank in range(2)]
    scheduler, tokens = rig.scheduler(world=2), rig.tokens(3)
    blocks = rig.blocks(ranks[0], 3)
    assert ranks[0].store(tokens, blocks)
    assert ranks[1].store(tokens, [blocks[0][:4]], end=rig.chunk)
    rig.forget()
    assert scheduler.lookup(tokens) == 1
    scheduler.free(tokens, 0, rig.chunk)


def test_salts_and_models_do_not_meet(rig: L2Rig) -> None:
    worker, scheduler = rig.worker(), rig.scheduler()
    other = rig.worker(model="another")
    tokens, blocks = rig.tokens(2), rig.blocks(worker, 2)
    assert worker.store(tokens, blocks, salt="a b/c"[:3])
    rig.forget()
    assert scheduler.lookup(tokens, "r1") == 0
    assert scheduler.lookup(tokens, "r2", salt="b") == 0
    assert rig.scheduler(model="another").lookup(tokens, "r3") == 0
    assert other.cache is not None
    assert scheduler.lookup(tokens, "r4", salt="a b") == 2
    scheduler.free(tokens, 0, len(tokens), "r4", salt="a b")


def test_another_layout_does_not_get_these_bytes(rig: L2Rig) -> None:
    """The same model with another number of heads: a miss, before and after it has gone down."""
    first = rig.worker(one_group(FUSED, seed=1))
    tokens = rig.tokens(2)
    assert first.store(tokens, rig.blocks(first, 2))
    first.unregister()
    rig.forget()
    rig.worker(one_group(FUSED, seed=1, heads=4))
    assert rig.scheduler().lookup(tokens) == 0


def test_a_window_that_was_given_up_stays_given_up(rig: L2Rig) -> None:
    """What lacked blocks of a windowed group when it was stored lacks them when it comes back."""
    cache = merge(one_group(FUSED, seed=1), one_group(FUSED, seed=2))
    cache.groups[1].window = rig.chunk
    worker, scheduler = rig.worker(cache), rig.scheduler()
    tokens, (full, window) = rig.tokens(4), rig.blocks(worker, 4)
    early = len(window) // 2
    assert worker.store(tokens, [full, [0] * early + window[early:]])
    rig.forget()
    assert scheduler.lookup(tokens) == 4
    before = cache.image()
    # The early chunks are partial: asked for in full they are refused, and nothing is written.
    assert not worker.retrieve(tokens, rig.blocks(worker, 4, first=22))
    assert all(torch.equal(now, before[layer]) for layer, now in cache.image().items())
    # A prefix that ends inside the part that was given up is no hit.
    assert scheduler.lookup(tokens[: rig.chunk], "short") == 0


def test_a_fuller_store_replaces_what_l2_has(rig: L2Rig) -> None:
    cache = merge(one_group(FUSED, seed=1), one_group(FUSED, seed=2))
    cache.groups[1].window = rig.chunk
    worker, scheduler = rig.worker(cache), rig.scheduler()
    tokens, (full, window) = rig.tokens(2), rig.blocks(worker, 2)
    half = len(window) // 2
    assert worker.store(tokens, [full, [0] * half + window[half:]])
    wait_until(lambda: rig.server.leases() == 0, "written down")
    assert worker.store(tokens, [full, window])
    rig.forget()
    assert scheduler.lookup(tokens[: rig.chunk], "head") == 1
    scheduler.free(tokens[: rig.chunk], 0, rig.chunk, "head")


def test_part_in_l1_part_in_l2(rig: L2Rig, mode: str) -> None:
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens, blocks = rig.tokens(4), rig.blocks(worker, 4)
    origin = worker.cache.image()
    assert worker.store(tokens, blocks)
    rig.forget()
    assert scheduler.lookup(tokens[: 2 * rig.chunk], "half") == 2
    scheduler.free(tokens[: 2 * rig.chunk], 0, 2 * rig.chunk, "half")
    before_l2 = rig.from_l2()
    assert scheduler.lookup(tokens) == 4
    assert rig.from_l2() - before_l2 == 2
    target = rig.blocks(worker, 4, first=20)
    before = worker.cache.image()
    assert worker.retrieve(tokens, target)
    expect_moved(worker, before, origin, blocks, target)


def test_wait_tells_the_hit_when_it_is_known(rig: L2Rig) -> None:
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens = rig.tokens(3)
    assert worker.store(tokens, rig.blocks(worker, 3))
    rig.forget()
    scheduler.begin_lookup(tokens, "waits")
    assert scheduler.rpc.wait_prefetch_status("waits", 30.0).result(timeout=60) == 3
    scheduler.free(tokens, 0, len(tokens), "waits")


def test_an_engines_reset_reaches_l2(rig: L2Rig) -> None:
    """New weights, the same model name: what the old ones computed must not come back."""
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens = rig.tokens(2)
    assert worker.store(tokens, rig.blocks(worker, 2))
    rig.forget()
    scheduler.clear()
    assert scheduler.lookup(tokens) == 0
    wait_until(lambda: not rig.total("l2_objects"), "the objects are gone")


def prefetch(rig: L2Rig, tokens: tuple[int, ...]) -> dict[str, Any]:
    """Ask for a prefetch and wait for its end."""
    body = {"model_name": rig.model, "world_size": 1, "token_ids": list(tokens)}
    code, text = rig.server.request("/cache/prefetches", body)
    assert code == 202, text
    job = json.loads(text)
    assert job["status"] == "submitted"
    while True:
        code, text = rig.server.request(f"/cache/prefetches/{job['request_id']}")
        assert code == 200, text
        if json.loads(text)["status"] == "completed":
            return dict(json.loads(text))
        time.sleep(0.02)


def test_a_prefetch_brings_a_sequence_into_the_l1(rig: L2Rig) -> None:
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens = rig.tokens(3)
    assert worker.store(tokens, rig.blocks(worker, 3))
    rig.forget()
    job = prefetch(rig, tokens)
    assert (job["found_keys"], job["total_keys"]) == (3, 3)
    rig.server.assert_no_leases()
    before_l2 = rig.from_l2()
    assert scheduler.lookup(tokens) == 3
    assert rig.from_l2() == before_l2
    scheduler.free(tokens, 0, len(tokens))
    assert rig.server.request(f"/cache/prefetches/{job['request_id']}")[0] == 404


def objects_of(rig: L2Rig) -> list[dict[str, Any]]:
    """All of this test's objects, page by page."""
    found: list[dict[str, Any]] = []
    token = "0"
    while token is not None:
        path = f"/cache/objects?page_size=2&page_token={token}&model_name="
        code, text = rig.server.request(path + rig.model.replace("[", "%5B").replace("]", "%5D"))
        assert code == 200, text
        page = json.loads(text)
        found += page["entries"]
        token = page["next_page_token"]
    return found


def test_objects_are_listed_and_deleted_one_by_one(rig: L2Rig) -> None:
    worker, scheduler = rig.worker(), rig.scheduler()
    tokens = rig.tokens(3)
    assert worker.store(tokens, rig.blocks(worker, 3))
    rig.forget()
    listed = objects_of(rig)
    assert {entry["key"]["model_name"] for entry in listed} == {rig.model}
    assert len(listed) == 3
    last = rig_hash(scheduler, rig, tokens)
    doomed = [e["key"] for e in listed if e["key"]["chunk_hash_hex"] == last]
    code, text = rig.server.request("/cache/objects", {"keys": doomed}, "DELETE")
    assert (code, json.loads(text)) == (200, {"deleted": 1, "skipped": 0, "ok": True})
    rig.forget()
    assert scheduler.lookup(tokens) == 2
    scheduler.free(tokens, 0, 2 * rig.chunk)


def rig_hash(scheduler: Scheduler, rig: L2Rig, tokens: tuple[int, ...]) -> str:
    """The hash of the last chunk, by the rule of the protocol notes (section 2.0)."""
    from blake3 import blake3

    parent = blake3(bytes(12)).digest()
    for start in range(0, len(tokens), rig.chunk):
        chunk = b"".join(t.to_bytes(4, "big") for t in tokens[start : start + rig.chunk])
        parent = blake3(parent + chunk).digest()
    return parent.hex()


def test_two_adapters_serve_as_one(
    new_server: Callable[..., Server], tmp_path: Path, mode: str
) -> None:
    """Near and far: what the near one loses comes from the far one, and is near again."""
    specs = [
        {"type": "fs", "base_path": str(tmp_path / name), "min_free_gb": 0, "name": name}
        for name in ("near", "far")
    ]
    server = new_server("--l2-adapter", json.dumps(specs[0]), "--l2-adapter", json.dumps(specs[1]))
    rig = L2Rig(server.start(), "cascade")
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    there_and_back(rig, worker, scheduler)
    for file in (tmp_path / "near" / "objects").rglob("*.kv"):
        file.unlink()
    rig.forget()
    tokens = rig.tokens(3)
    assert scheduler.lookup(tokens, "again") == 3
    scheduler.free(tokens, 0, len(tokens), "again")
    assert rig.total("l2_prefetch_load_completed_chunks_total", l2_name="far") == 3
    wait_until(lambda: len(list((tmp_path / "near" / "objects").rglob("*.kv"))) == 3, "near again")
    rig.close()


def test_skip_l1(new_server: Callable[..., Server], tmp_path: Path, mode: str) -> None:
    spec = {"type": "fs", "base_path": str(tmp_path / "l2"), "min_free_gb": 0}
    server = new_server("--l2-adapter", json.dumps(spec), "--l2-store-policy", "skip_l1").start()
    rig = L2Rig(server, "skip")
    worker, scheduler = rig.worker(mode=mode), rig.scheduler()
    tokens = rig.tokens(3)
    assert worker.store(tokens, rig.blocks(worker, 3))
    wait_until(lambda: server.l1()["total_object_count"] == 0, "gone from the L1")
    assert scheduler.lookup(tokens) == 3
    assert worker.retrieve(tokens, rig.blocks(worker, 3, first=20))
    server.assert_no_leases()
    rig.close()
