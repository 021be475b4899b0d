"""Prefetches over HTTP: submission, and a poll that tells the result once."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.admin_site import CHUNK_SIZE, Site

PATH = "/cache/prefetches"
TWO_CHUNKS = list(range(2 * CHUNK_SIZE + 5))


def body(**change: Any) -> dict[str, Any]:
    return {"model_name": "llama", "world_size": 2, "token_ids": TWO_CHUNKS, **change}


def test_a_prefetch_is_pending_then_completed_once_then_unknown(site: Site) -> None:
    reply = site.http.post(PATH, json=body(cache_salt="tenant"))
    assert (reply.status_code, reply.json()) == (
        202,
        {"request_id": "prefetch-1", "chunks": 2, "status": "submitted"},
    )
    hashes = [first.to_bytes(4) for first in (0, CHUNK_SIZE)]
    assert site.service.prefetches.submitted == [("llama", 2, hashes, "tenant")]
    for _ in range(2):
        reply = site.http.get(f"{PATH}/prefetch-1")
        assert (reply.status_code, reply.json()) == (
            200,
            {"request_id": "prefetch-1", "status": "pending"},
        )
    site.service.prefetches.jobs["prefetch-1"].found_keys = 3
    reply = site.http.get(f"{PATH}/prefetch-1")
    assert (reply.status_code, reply.json()) == (
        200,
        {"request_id": "prefetch-1", "status": "completed", "found_keys": 3, "total_keys": 4},
    )
    reply = site.http.get(f"{PATH}/prefetch-1")
    assert (reply.status_code, reply.json()) == (404, {"detail": "unknown prefetch prefetch-1"})


def test_tokens_are_not_hashed_on_the_wire_thread(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes, call, on_loop = site.service.prefetches.hashes, site.loop.call, threading.local()

    def on_the_wire_thread(fn: Callable[[], Any], timeout: float) -> Any:
        on_loop.now = True
        try:
            return call(fn, timeout)
        finally:
            on_loop.now = False

    def checked(token_ids: list[int]) -> list[bytes]:
        assert not getattr(on_loop, "now", False)
        return hashes(token_ids)

    monkeypatch.setattr(site.loop, "call", on_the_wire_thread)
    monkeypatch.setattr(site.service.prefetches, "hashes", checked)
    assert site.http.post(PATH, json=body()).json()["status"] == "submitted"


def test_one_that_found_nothing_has_ended_too(site: Site) -> None:
    request_id = site.http.post(PATH, json=body()).json()["request_id"]
    site.service.prefetches.jobs[request_id].found_keys = 0
    reply = site.http.get(f"{PATH}/{request_id}").json()
    assert (reply["status"], reply["found_keys"]) == ("completed", 0)


@pytest.mark.parametrize("tokens", [0, CHUNK_SIZE - 1])
def test_less_than_a_chunk_is_no_prefetch(site: Site, tokens: int) -> None:
    reply = site.http.post(PATH, json=body(token_ids=[1] * tokens))
    assert (reply.status_code, reply.json()) == (202, {"chunks": 0, "status": "noop"})


def test_tiers_may_be_named(site: Site) -> None:
    reply = site.http.post(PATH, json=body(source_tier="l2", target_tier="l1"))
    assert reply.status_code == 202


def test_the_largest_token_is_one(site: Site) -> None:
    reply = site.http.post(PATH, json=body(token_ids=[2**32 - 1] * CHUNK_SIZE))
    assert reply.json()["chunks"] == 1


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"model_name": "qwen"}, 503, "no worker serves 'qwen' with world size 2"),
        ({"model_name": ""}, 400, "Expected `str` of length >= 1 - at `$.model_name`"),
        ({"model_name": None}, 400, "Expected `str`, got `null` - at `$.model_name`"),
        ({"cache_salt": "a@b"}, 400, "cache_salt contains '@'"),
        ({"world_size": 0}, 400, "Expected `int` >= 1 - at `$.world_size`"),
        ({"token_ids": [-1]}, 400, "Expected `int` >= 0 - at `$.token_ids[0]`"),
        ({"token_ids": [2**32]}, 400, "Expected `int` <= 4294967295 - at `$.token_ids[0]`"),
        ({"token_ids": ["1"]}, 400, "Expected `int`, got `str` - at `$.token_ids[0]`"),
        ({"token_ids": [True]}, 400, "Expected `int`, got `bool` - at `$.token_ids[0]`"),
        ({"token_ids": [1] * 4097}, 400, "4097 tokens, more than 4096"),
        ({"token_ids": "1"}, 400, "Expected `array`, got `str` - at `$.token_ids`"),
        ({"source_tier": "l1"}, 400, "Invalid enum value 'l1' - at `$.source_tier`"),
        ({"target_tier": "l0"}, 400, "Invalid enum value 'l0' - at `$.target_tier`"),
        ({"tokens": []}, 400, "Object contains unknown field `tokens`"),
    ],
)
def test_wrong_prefetches(site: Site, change: dict[str, Any], status: int, detail: str) -> None:
    reply = site.http.post(PATH, json=body(**change))
    assert reply.status_code == status
    assert reply.json()["detail"].startswith(detail)
    assert site.service.prefetches.submitted == []


def test_a_name_that_is_no_unicode_is_refused(site: Site) -> None:
    text = '{"model_name": "\\ud800", "world_size": 1, "token_ids": []}'
    headers = {"content-type": "application/json"}
    assert site.http.post(PATH, content=text, headers=headers).status_code == 400


def test_a_poll_for_nobody(site: Site) -> None:
    reply = site.http.get(f"{PATH}/nonsense")
    assert (reply.status_code, reply.json()) == (404, {"detail": "unknown prefetch nonsense"})


def test_while_the_loop_hangs(site: Site) -> None:
    site.loop.hung = True
    for reply in (site.http.post(PATH, json=body()), site.http.get(f"{PATH}/prefetch-1")):
        assert reply.status_code == 503
        assert reply.json()["error"] == "the wire loop has not answered for 5 s"
