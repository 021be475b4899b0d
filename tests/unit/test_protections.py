"""What operators have protected in the L1: a share of it, for a time, and no longer."""

from __future__ import annotations

from typing import Any

import pytest

from sidecar.cache.arena import ALIGNMENT
from sidecar.cache.check import problems
from sidecar.cache.entry import Entry
from sidecar.cache.keys import SpaceKey
from sidecar.cache.l1 import L1
from sidecar.cache.leases import Leases, Scope
from sidecar.cache.policies.lru import LRU
from sidecar.cache.protections import TooMuchToProtect
from sidecar.handlers.protecting import Protecting, RecentLookups
from tests.support.admin_site import CHUNK_SIZE, Site
from tests.support.node import CHUNK, WORKERS, Node
from tests.support.tiers import Bench

KEY = SpaceKey("llama", 1, 0, "", b"layout")
SCOPE = ("llama", 1, "")


def hash_of(number: int) -> bytes:
    return number.to_bytes(4, "big")


def store(l1: L1, *numbers: int, key: SpaceKey = KEY) -> list[Entry]:
    hashes = [hash_of(number) for number in numbers]
    entries = [entry for each in hashes if (entry := l1.reserve(key, each, ALIGNMENT))]
    l1.publish(key, entries, hashes[: len(entries)])
    return entries


@pytest.fixture
def l1() -> L1:
    made = L1(8 * ALIGNMENT, LRU(), protect_ratio=0.5)
    made.grow(0, 8 * ALIGNMENT)
    return made


def present(l1: L1, *numbers: int) -> int:
    space = l1.space(KEY)
    return sum(hash_of(number) in space.ready for number in numbers) if space else 0


def protecting(l1: L1) -> Protecting:
    return Protecting(l1, RecentLookups())


def test_what_is_protected_is_not_evicted_until_its_time_is_up(l1: L1) -> None:
    store(l1, 1, 2, 3, 4)
    shown = protecting(l1).protect_sequence(*SCOPE, [hash_of(1), hash_of(2)], 10.0, 100.0)
    assert (shown.chunks, shown.objects, shown.nbytes) == (2, 2, 2 * ALIGNMENT)
    store(l1, *range(10, 20))
    assert (present(l1, 1, 2), present(l1, 3, 4)) == (2, 0)
    assert problems(l1, Leases()) == []
    l1.protections.expire(109.0)
    assert len(l1.protections) == 1
    l1.protections.expire(110.0)
    assert (len(l1.protections), l1.protections.nbytes, l1.held) == (0, 0, 0)
    store(l1, *range(20, 28))
    assert present(l1, 1, 2) == 0


def test_never_more_than_the_share_is_protected(l1: L1) -> None:
    store(l1, *range(8))
    asked, hashes = protecting(l1), [hash_of(number) for number in range(8)]
    with pytest.raises(TooMuchToProtect, match="20480 bytes more than the 0 that are protected"):
        asked.protect_sequence(*SCOPE, hashes[:5], 10.0, 0.0)
    assert (len(l1.protections), l1.protections.nbytes, l1.held) == (0, 0, 0)
    first = asked.protect_sequence(*SCOPE, hashes[:4], 10.0, 0.0)
    again = asked.protect_sequence(*SCOPE, hashes[:3], 20.0, 0.0)
    assert l1.protections.nbytes == 4 * ALIGNMENT, "what is protected twice counts once"
    with pytest.raises(TooMuchToProtect):
        asked.protect_sequence(*SCOPE, hashes[:5], 10.0, 0.0)
    assert problems(l1, Leases()) == []
    assert asked.remove(first.id) and not asked.remove(first.id)
    assert l1.protections.nbytes == 3 * ALIGNMENT
    l1.protections.expire(20.0)
    assert (l1.protections.nbytes, l1.held) == (0, 0) and not asked.remove(again.id)


def test_only_the_beginning_is_protected_of_all_ranks(l1: L1) -> None:
    other = KEY._replace(rank=1, world_size=2)
    store(l1, 1, 2, 4)
    store(l1, 1, key=other)
    store(l1, 1, key=other._replace(rank=0))
    hashes = [hash_of(number) for number in (1, 2, 3, 4)]
    asked = protecting(l1)
    assert asked.protect_sequence(*SCOPE, hashes, 10.0, 0.0).chunks == 2
    both = asked.protect_sequence("llama", 2, "", hashes, 10.0, 0.0)
    assert (both.chunks, both.objects) == (1, 2)
    for scope in (("llama", 1, "salt"), ("other", 1, ""), ("llama", 4, "")):
        with pytest.raises(KeyError):
            asked.protect_sequence(*scope, hashes, 10.0, 0.0)


@pytest.mark.parametrize("force", [False, True])
def test_what_was_cleared_is_let_go(l1: L1, force: bool) -> None:
    store(l1, 1, 2)
    protecting(l1).protect_sequence(*SCOPE, [hash_of(1), hash_of(2)], 1000.0, 0.0)
    l1.clear(force)
    assert present(l1, 1, 2) == 0
    l1.protections.expire(1.0)
    assert (len(l1.protections), l1.protections.nbytes, l1.held, l1.used_bytes) == (0, 0, 0, 0)
    assert problems(l1, Leases()) == []


def test_the_last_requests_are_remembered_and_not_too_many() -> None:
    recent, scope = RecentLookups(), Scope(*SCOPE)
    for number in range(20):
        recent.add(f"r{number}", scope, [b""] * 8192)
    recent.add("r19", scope, [b"x"])
    assert recent.sequence("r19") == (scope, [b"x"])
    with pytest.raises(KeyError):
        recent.sequence("r10")
    assert recent._chunks == sum(len(hashes) for _, hashes in recent._sequences.values())


@pytest.mark.parametrize("mode", WORKERS)
def test_a_request_that_was_just_served_can_be_protected(mode: str) -> None:
    node = Node(Bench(slots=8).start())
    worker, prompt = WORKERS[mode](node, 1), list(range(4 * CHUNK))
    node.lookup(worker.key(prompt, 0, 4, "r"))
    worker.write(prompt, 0, 4, "r")
    node.ask("end_session", "r")
    shown = node.service.protecting.protect_request("r", 10.0, node.core.now())
    assert shown.chunks == 4
    node.bench.l1.evict(100, 0)
    assert node.bench.l1.objects == 4
    node.close()


def tokens(*numbers: int) -> list[int]:
    return [token for number in numbers for token in [number] * CHUNK_SIZE]


def test_protections_over_http(site: Site) -> None:
    l1 = site.service.l1
    l1.grow(0, 4 * ALIGNMENT)
    store(l1, 1, 2, 3)
    body: dict[str, Any] = {"model_name": "llama", "token_ids": tokens(1, 2), "ttl_seconds": 60}
    reply = site.http.post("/cache/protections", json=body)
    assert reply.status_code == 201
    made = reply.json()
    assert (made["chunks"], made["objects"], made["nbytes"]) == (2, 2, 2 * ALIGNMENT)
    listed = site.http.get("/cache/protections").json()
    assert (listed["used_bytes"], listed["limit_bytes"]) == (2 * ALIGNMENT,) * 2
    assert [each["id"] for each in listed["protections"]] == [made["id"]]
    assert 0 < listed["protections"][0]["seconds_left"] <= 60
    more = site.http.post("/cache/protections", json={**body, "token_ids": tokens(1, 2, 3)})
    assert more.status_code == 409 and "over the limit" in more.json()["detail"]
    for status in (200, 404):
        assert site.http.delete(f"/cache/protections/{made['id']}").status_code == status
    site.service.recent.add("r7", Scope(*SCOPE), [hash_of(1)])
    by_request = site.http.post("/cache/protections", json={"request_id": "r7", "ttl_seconds": 1})
    assert by_request.json()["chunks"] == 1
    for unknown in ({**body, "model_name": "other"}, {"request_id": "r8", "ttl_seconds": 1}):
        assert site.http.post("/cache/protections", json=unknown).status_code == 404
    site.service.protecting.remove(by_request.json()["id"])
    l1.clear(force=True)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ttl_seconds": 60},
        {"request_id": "r", "ttl_seconds": 0},
        {"request_id": "r", "ttl_seconds": 604_801},
        {"request_id": "r", "ttl_seconds": 1, "token_ids": [1], "model_name": "llama"},
        {"token_ids": [1], "ttl_seconds": 1},
        {"token_ids": [-1], "model_name": "llama", "ttl_seconds": 1},
        {"request_id": "r", "ttl_seconds": 1, "for_ever": True},
    ],
)
def test_what_is_no_protection(site: Site, body: dict[str, Any]) -> None:
    reply = site.http.post("/cache/protections", json=body)
    assert reply.status_code == 400 and reply.json()["detail"]
