"""Objects one by one over HTTP: what is listed and deleted, and what is refused how."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.admin_site import Key, Name, Site

COUNT = 7


def key(number: int, model_name: str = "llama") -> Key:
    return bytes([number]) * 32, model_name, 0x01000100, "tenant"


def encoded(of: Key) -> dict[str, Any]:
    chunk_hash, model_name, kv_rank, cache_salt = of
    return {
        "chunk_hash_hex": chunk_hash.hex(),
        "model_name": model_name,
        "kv_rank": kv_rank,
        "object_group_id": 0,
        "cache_salt": cache_salt,
    }


def named(of: Key) -> Name:
    return Name(of[0], of)


@pytest.fixture
def site(running: Site) -> Iterator[Site]:
    """A disk with some objects, every third of another model, and a bucket with one."""
    running.service.objects.l2 = {
        "disk": [(named(key(n, "qwen" if n % 3 == 2 else "llama")), 100 + n) for n in range(COUNT)],
        "bucket": [(named(key(99)), 9)],
    }
    yield running
    running.reset()


def walked(site: Site, **params: str | int) -> list[list[dict[str, Any]]]:
    """The pages of a listing, to its end."""
    pages = []
    while True:
        page = site.http.get("/cache/objects", params=params).raise_for_status().json()
        pages.append(page["entries"])
        if page["next_page_token"] is None:
            return pages
        params["page_token"] = page["next_page_token"]


def deleted(site: Site, **body: Any) -> httpx.Response:
    return site.http.request("DELETE", "/cache/objects", json=body)


def left(site: Site, adapter: str) -> list[Key | None]:
    return [name.key for name, _ in site.service.objects.l2[adapter]]


def test_one_page_of_the_first_adapter(site: Site) -> None:
    page = site.http.get("/cache/objects").json()
    entries = page.pop("entries")
    assert page == {"adapter": "disk", "shared": False, "next_page_token": None}
    assert len(entries) == COUNT
    assert entries[0] == {"key": encoded(key(0)), "size_bytes": 100}


def test_an_adapter_may_be_named(site: Site) -> None:
    page = site.http.get("/cache/objects", params={"tier": "l2", "adapter": "bucket"}).json()
    assert (page["adapter"], page["shared"]) == ("bucket", True)
    assert page["entries"] == [{"key": encoded(key(99)), "size_bytes": 9}]


@pytest.mark.parametrize("size", range(1, COUNT + 2))
def test_pages_are_walked_to_the_end(site: Site, size: int) -> None:
    pages = walked(site, page_size=size)
    assert [entry["size_bytes"] for page in pages for entry in page] == [
        100 + n for n in range(COUNT)
    ]
    assert all(len(page) == size for page in pages[:-1])
    assert 0 < len(pages[-1]) <= size


@pytest.mark.parametrize("size", range(1, COUNT + 2))
def test_only_objects_of_one_model(site: Site, size: int) -> None:
    for model_name, expected in (("qwen", [102, 105]), ("llama", [100, 101, 103, 104, 106])):
        pages = walked(site, page_size=size, model_name=model_name)
        assert [entry["size_bytes"] for page in pages for entry in page] == expected
    assert walked(site, page_size=size, model_name="gemma") == [[]]


def test_an_empty_adapter_and_a_page_behind_the_end(site: Site) -> None:
    behind = site.http.get("/cache/objects", params={"page_token": str(COUNT + 1)}).json()
    assert (behind["entries"], behind["next_page_token"]) == ([], None)
    site.service.objects.l2 = {"disk": []}
    assert walked(site) == [[]]


def test_of_a_name_that_is_a_digest_only_the_hash_is_told(site: Site) -> None:
    site.service.objects.l2["disk"] = [(Name(b"\xab" * 32, None), 5)]
    (entry,) = site.http.get("/cache/objects").json()["entries"]
    assert entry == {"key": {"chunk_hash_hex": "ab" * 32, "object_group_id": 0}, "size_bytes": 5}
    assert walked(site, model_name="llama") == [[]]


@pytest.mark.parametrize(
    ("params", "status", "detail"),
    [
        ({"tier": "l1"}, 400, "tier 'l1' cannot be listed"),
        ({"adapter": "tape"}, 404, "there is no adapter 'tape'"),
        ({"page_size": 0}, 400, "query.page_size: Input should be greater than or equal to 1"),
        ({"page_size": 5001}, 400, "query.page_size: Input should be less than or equal to 5000"),
        ({"page_size": "all"}, 400, "query.page_size: Input should be a valid integer"),
        ({"page_token": "-1"}, 400, "query.page_token: String should match pattern"),
        ({"page_token": "x"}, 400, "query.page_token: String should match pattern"),
        ({"page_token": "9" * 100}, 400, "query.page_token: String should match pattern"),
    ],
)
def test_wrong_listings(site: Site, params: dict[str, Any], status: int, detail: str) -> None:
    reply = site.http.get("/cache/objects", params=params)
    assert reply.status_code == status
    assert reply.json()["detail"].startswith(detail)


def test_without_any_adapter_there_is_nothing_to_list_or_delete(site: Site) -> None:
    site.service.objects.l2 = {}
    for reply in (site.http.get("/cache/objects"), deleted(site, keys=[encoded(key(0))])):
        assert (reply.status_code, reply.json()) == (503, {"detail": "no L2 adapter is configured"})


def test_what_was_listed_can_be_deleted(site: Site) -> None:
    (entries,) = walked(site, model_name="qwen")
    reply = deleted(site, keys=[entry["key"] for entry in entries])
    assert (reply.status_code, reply.json()) == (200, {"deleted": 2, "skipped": 0, "ok": True})
    assert left(site, "disk") == [key(n) for n in range(COUNT) if n % 3 != 2]
    assert left(site, "bucket") == [key(99)]


def test_what_could_not_be_deleted_is_told(site: Site) -> None:
    site.service.objects.undeletable = {key(1)}
    reply = deleted(site, keys=[encoded(key(0)), encoded(key(1))])
    assert reply.status_code == 503
    assert reply.json() == {
        "deleted": 1, "skipped": 0, "ok": False,
        "error": "1 objects could not be removed from L2",
    }  # fmt: skip


def test_objects_are_deleted_from_the_adapter_that_is_named(site: Site) -> None:
    keys = [encoded(key(0)), encoded(key(99))]
    assert deleted(site, keys=keys, adapter="bucket").json()["deleted"] == 1
    assert left(site, "bucket") == []
    assert len(left(site, "disk")) == COUNT


def test_tiers_of_a_deletion_and_what_is_in_use(site: Site) -> None:
    objects = site.service.objects
    objects.l1, objects.held = {key(0), key(1)}, {key(1)}
    keys = [encoded(key(0)), encoded(key(1))]
    assert deleted(site, keys=keys, tier="l1").json() == {"deleted": 1, "skipped": 1, "ok": True}
    assert len(left(site, "disk")) == COUNT
    assert deleted(site, keys=keys, tier="all").json() == {"deleted": 2, "skipped": 1, "ok": True}
    assert len(left(site, "disk")) == COUNT - 2
    reply = deleted(site, keys=keys, tier="l1", force=True)
    assert reply.json() == {"deleted": 1, "skipped": 0, "ok": True}
    assert objects.l1 == set()


def test_objects_that_are_not_there_are_no_error(site: Site) -> None:
    for keys in ([], [encoded(key(50))], [{**encoded(key(0)), "object_group_id": 1}]):
        reply = deleted(site, keys=keys)
        assert reply.json() == {"deleted": 0, "skipped": 0, "ok": True}
    assert len(left(site, "disk")) == COUNT


@pytest.mark.parametrize(
    ("change", "status", "detail"),
    [
        ({"tier": "l3"}, 400, "body.tier: Input should be 'l1', 'l2' or 'all'"),
        ({"adapter": "tape"}, 404, "there is no adapter 'tape'"),
        ({"keys": [{}]}, 400, "body.keys.0.chunk_hash_hex: Field required"),
        ({"keys": [encoded(key(0))] * 5001}, 400, "body.keys: List should have at most 5000"),
        ({"kees": []}, 400, "body.kees: Extra inputs are not permitted"),
        ({"force": 1}, 400, "body.force: Input should be a valid boolean"),
    ],
)
def test_wrong_deletions_delete_nothing(
    site: Site, change: dict[str, Any], status: int, detail: str
) -> None:
    reply = deleted(site, **{"keys": [encoded(key(0))], **change})
    assert reply.status_code == status
    assert reply.json()["detail"].startswith(detail)
    assert len(left(site, "disk")) == COUNT


@pytest.mark.parametrize(
    "text", ["", "00", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 64 + "\n"]
)
def test_what_is_no_hash_is_refused(site: Site, text: str) -> None:
    reply = deleted(site, keys=[encoded(key(0)), {**encoded(key(1)), "chunk_hash_hex": text}])
    assert reply.status_code == 400
    assert reply.json()["detail"].startswith("body.keys.1.chunk_hash_hex: String should match")
    assert len(left(site, "disk")) == COUNT


@pytest.mark.parametrize("tier", ["l1", "l2", "all"])
def test_while_the_loop_hangs(site: Site, tier: str) -> None:
    site.loop.hung = True
    for reply in (
        site.http.get("/cache/objects"),
        deleted(site, keys=[encoded(key(0))], tier=tier),
    ):
        assert reply.status_code == 503
        assert reply.json()["error"] == "the wire loop has not answered for 5 s"
