"""Clearing and checksums over HTTP: what is done, and what is refused how."""

from typing import Any

import pytest

from sidecar.tiers.clearing import Cleared
from tests.support.admin_site import Site


@pytest.mark.parametrize("path", ["/cache/clear", "/clear-cache", "/api/clear-cache"])
def test_clear(site: Site, path: str) -> None:
    done = {"status": "ok", "cleared": {"tier": "l1"}}  # LMCache's default
    for body in (None, {}, {"tier": "l1"}, {"tier": "l1", "force": True}):
        reply = site.http.post(path, json=body) if body is not None else site.http.post(path)
        assert (reply.status_code, reply.json()) == (200, done)
    assert site.service.cleared == [(("l1",), False)] * 3 + [(("l1",), True)]


@pytest.mark.parametrize(("tier", "tiers"), [("l2", ("l2",)), ("all", ("l1", "l2"))])
def test_clear_reaches_l2_only_if_it_is_named(
    site: Site, tier: str, tiers: tuple[str, ...]
) -> None:
    reply = site.http.post("/cache/clear", json={"tier": tier, "force": True})
    assert reply.json() == {"status": "ok", "cleared": {"tier": tier, "adapters": []}}
    assert site.service.cleared == [(tiers, True)]


def test_a_clear_tells_what_came_of_it(site: Site) -> None:
    lasting = Cleared("s3", True, deleted=7, deleting=0, undeletable=2, detail="http_403")
    site.service.outcome = [lasting]
    reply = site.http.post("/cache/clear", json={"tier": "l2"})
    told = {
        "adapter": "s3", "lasts": True, "deleted": 7, "deleting": 0, "undeletable": 2,
        "detail": "http_403",
    }  # fmt: skip
    assert reply.status_code == 200
    assert reply.json() == {"status": "ok", "cleared": {"tier": "l2", "adapters": [told]}}


def test_a_clear_that_may_not_last_is_no_success(site: Site) -> None:
    lasting = Cleared("fs", True, 0, 0, 0, "")
    site.service.outcome = [lasting, Cleared("s3", False, 0, 0, 0, "timeout")]
    reply = site.http.post("/cache/clear", json={"tier": "all"})
    assert reply.status_code == 503
    assert reply.json()["error"] == "the clear does not last yet"
    adapters = reply.json()["cleared"]["adapters"]
    assert [(each["lasts"], each["detail"]) for each in adapters] == [
        (True, ""),
        (False, "timeout"),
    ]


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ('{"tier": "l3"}', "body.tier: Input should be 'l1', 'l2' or 'all'"),
        ('{"tier": ["l2"]}', "body.tier: Input should be 'l1', 'l2' or 'all'"),
        ('{"force": "yes"}', "body.force: Input should be a valid boolean"),
        ('{"frce": true}', "body.frce: Extra inputs are not permitted"),
        ("[", "body.1: JSON decode error"),
    ],
)
def test_clear_with_a_wrong_body_clears_nothing(site: Site, body: str, detail: str) -> None:
    reply = site.http.post(
        "/cache/clear", content=body, headers={"content-type": "application/json"}
    )
    assert (reply.status_code, reply.json()) == (400, {"detail": detail})
    assert site.service.cleared == []


def test_clear_needs_a_post(site: Site) -> None:
    assert site.http.get("/cache/clear").status_code == 405
    assert site.service.cleared == []


def test_clear_while_the_loop_hangs(site: Site) -> None:
    site.loop.hung = True
    reply = site.http.post("/cache/clear", json={"tier": "l1"})
    assert reply.status_code == 503
    assert reply.json()["error"] == "the wire loop has not answered for 5 s"


def test_the_check_of_the_accounts(site: Site) -> None:
    assert site.http.get("/cache/check").status_code == 405
    reply = site.http.post("/cache/check")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})
    site.service.wrong = ["byte 4096 belongs to two"]
    reply = site.http.post("/cache/check")
    assert reply.status_code == 500
    assert reply.json() == {"status": "broken", "problems": ["byte 4096 belongs to two"]}


def test_checksums_of_chunks_and_of_layers(site: Site) -> None:
    body = {"block_ids": [1, 2, 3, 9, 8], "chunk_size": 4, "instance_id": 7, "layerwise": False}
    assert site.http.post("/cache/checksums", json=body).json() == {
        "status": "success",
        "chunk_size": 4,
        "num_chunks": 2,
        "chunk_checksums": ["d0", "d1"],
        "layerwise": False,
        "block_id_ranges": [[1, 3], 9, 8],
    }
    reply = site.http.post("/cache/checksums", json={**body, "layerwise": True}).json()
    assert reply["layerwise"] is True
    assert reply["chunk_checksums"] == {"layer_0": ["d0", "d1"]}


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"instance_id": 8}, 404, "instance_id 8 is not registered"),
        ({"block_ids": [100]}, 400, "block id 100 is not below 100"),
        ({"block_ids": []}, 400, "body.block_ids: List should have at least 1 item"),
        ({"block_ids": [*range(4097)]}, 400, "body.block_ids: List should have at most 4096 items"),
        ({"block_ids": ["1"]}, 400, "body.block_ids.0: Input should be a valid integer"),
        ({"block_ids": [True]}, 400, "body.block_ids.0: Input should be a valid integer"),
        ({"chunk_size": 0}, 400, "body.chunk_size: Input should be greater than or equal to 1"),
        ({"layer": 1}, 400, "body.layer: Extra inputs are not permitted"),
    ],
)
def test_checksums_of_wrong_input(
    site: Site, change: dict[str, Any], status: int, detail: str
) -> None:
    body = {"block_ids": [1], "chunk_size": 1, "instance_id": 7} | change
    reply = site.http.post("/cache/checksums", json=body)
    assert reply.status_code == status
    assert reply.json()["detail"].startswith(detail)


def test_a_huge_body_is_refused(site: Site) -> None:
    headers = {"content-type": "application/json"}
    whole = site.http.post("/cache/clear", content=b" " * 12_000_000, headers=headers)
    chunked = site.http.post(
        "/cache/clear", content=(b" " * 1_000_000 for _ in range(12)), headers=headers
    )
    for reply in (whole, chunked):
        assert (reply.status_code, reply.json()) == (
            413,
            {"detail": "the body has more than 10485760 bytes"},
        )
