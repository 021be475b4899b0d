"""Quotas of tenants: how they are written, kept in L2, and asked for over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sidecar.cache.arena import ALIGNMENT
from sidecar.cache.changes import Changes
from sidecar.cache.keys import SpaceKey
from sidecar.config import ConfigError, load
from sidecar.config.quotas import Amount, Quota, parse, written
from sidecar.tiers.catalog import Catalog
from sidecar.tiers.names import ObjectName, object_name
from sidecar.tiers.settings import EvictionSettings
from tests.support.admin_site import Site

GIB = 2**30
ISOLATED = ["--l1-size-gb", "1", "--eviction-policy", "IsolatedLRU"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 2}', [Quota("a", Amount(2 * GIB), Amount(2 * GIB))]),
        ('{"_default": "25%"}', [Quota("", Amount(share=0.25), Amount(share=0.25))]),
        ('{"a": {"l1": 0.5, "l2": "5%"}}', [Quota("a", Amount(GIB // 2), Amount(share=0.05))]),
        ('[{"a": 1}, {"b": {"l2": 0}}]',
         [Quota("a", Amount(GIB), Amount(GIB)), Quota("b", None, Amount(0))]),
    ],
)  # fmt: skip
def test_quotas_are_gib_or_shares(text: str, expected: list[Quota]) -> None:
    assert list(parse(text)) == expected
    assert parse(str(written(parse(text))).replace("'", '"')) == tuple(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("4", "4 is no object"),
        ("{", "not valid JSON"),
        ('{"a": -1}', "neither GiB nor a share"),
        ('{"a": "101%"}', "neither GiB nor a share"),
        ('{"a": true}', "neither GiB nor a share"),
        ('{"a": NaN}', "neither GiB nor a share"),
        ('{"a": []}', "neither GiB nor a share"),
        ('{"a": {}}', "is not {l1: ..., l2: ...}"),
        ('{"a": {"l3": 1}}', "is not {l1: ..., l2: ...}"),
        ('{"a@b": 1}', "a salt has 1 to 128 printable characters"),
        ('{"": 1}', "a salt has 1 to 128 printable characters"),
        (str({f"t{n}": 1 for n in range(1025)}).replace("'", '"'), "1025 tenants, more than 1024"),
    ],
)
def test_what_is_no_quota(text: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="^--quotas: .*" + reason[:20].replace("(", r"\(")):
        load([*ISOLATED, "--quotas", text], {})


def test_quotas_need_a_tier_that_keeps_tenants_apart() -> None:
    some = ["--quotas", '{"a": "10%"}']
    isolating = '{"type": "fs", "base_path": "/d", "eviction": {"eviction_policy": "IsolatedLRU"}'
    assert load([*ISOLATED, *some], {}).config.quotas[0].salt == "a"
    with pytest.raises(ConfigError, match="--quotas needs --eviction-policy IsolatedLRU"):
        load(["--l1-size-gb", "1", *some], {})
    with pytest.raises(ConfigError, match="a share of L2 fs needs its max_capacity_gb"):
        load(["--l1-size-gb", "1", *some, "--l2-adapter", isolating + "}"], {})
    load(["--l1-size-gb", "1", *some, "--l2-adapter", isolating + ', "max_capacity_gb": 1}'], {})


def name(salt: str, number: int) -> ObjectName:
    return object_name(SpaceKey("m", 1, 0, salt, bytes(16)), number.to_bytes(32, "big"))


def catalog(capacity: int) -> Catalog:
    return Catalog(capacity, EvictionSettings(eviction_policy="IsolatedLRU"), Changes())


def test_in_l2_a_tenant_over_its_quota_loses_its_own() -> None:
    found = catalog(100)
    assert found.tenants is not None
    found.tenants.quotas.limits["a"] = 30
    for number in range(3):
        found.add(name("a", number), 10)
        found.add(name("b", number), 10)
    found.touch(name("a", 0))
    assert not found.has_quota(name("a", 3), 10) and found.has_quota(name("b", 3), 10)
    assert found.keep_quota("a", 10, [name("a", 1)]) == [name("a", 2)]
    assert found.has_quota(name("a", 3), 10)
    assert found.keep_quota("a", 40, []) == [], "more than all of it: nothing goes for that"
    found.tenants.quotas.limits["a"] = 5
    assert found.keep_quota("a", 0, [], 1) == [name("a", 1)]
    assert found.keep_quota("a", 0, [], 1) == [name("a", 0)]
    assert len(found) == 3


def test_in_l2_room_comes_from_who_has_most_of_the_limit() -> None:
    found = catalog(100)
    for number in range(8):
        found.add(name("scanner", number), 10)
    for number in range(2):
        found.add(name("steady", number), 10)
    went = found.make_room(50, [])
    assert went == [name("scanner", number) for number in range(5)]
    found.recover([])
    found.sweep()
    assert found.tenants is not None and found.tenants.quotas.salts() == []


def test_in_l2_nothing_is_lost_while_something_is_recovered() -> None:
    found = catalog(100)
    found.add(name("a", 0), 10)
    found.add(name("a", 0), 20)
    assert found.tenants is not None and found.tenants.quotas.used("a") == 20
    assert found.make_room(90, []) == [name("a", 0)]
    assert found.tenants.quotas.used("a") == 0


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


def test_a_quota_over_http(site: Site) -> None:
    key = SpaceKey("m", 1, 0, "team", b"layout")
    site.service.l1.grow(0, ALIGNMENT)
    entry = site.service.l1.reserve(key, b"h", ALIGNMENT)
    assert entry is not None
    used = ALIGNMENT / GIB

    def ask(method: str, path: str = "/quota/team", body: Any = None) -> Any:
        reply = site.http.request(method, path, json=body)
        assert reply.status_code == 200, reply.text
        return reply.json()

    none = {"limit_gb": 1.0, "current_usage_gb": used, "l2": {}}
    assert ask("GET") == {"cache_salt": "team", **none, "exists": False}
    body = {"limit_gb": 0.5}
    assert ask("PUT", body=body) == {"cache_salt": "team", "limit_gb": 0.5, "status": "ok"}
    quota = {"limit_gb": 0.5, "current_usage_gb": used, "l2": {}}
    assert ask("GET") == {"cache_salt": "team", **quota, "exists": True}
    assert ask("PUT", "/quota/_default", {"limit_gb": 0})["cache_salt"] == "_default"
    assert list(ask("GET", "/quota")["users"]) == ["team", "_default"]
    assert ask("GET", "/quota")["users"]["team"] == quota
    shown = {"name": "team", "tiers": {"l1": {"used": ALIGNMENT, "limit": GIB // 2}}}
    assert shown in ask("GET", "/status")["tenants"]
    assert shown in ask("GET", "/page/state")["tenants"]
    for expected in ("removed", "not_found"):
        assert ask("DELETE") == {"cache_salt": "team", "status": expected}
    site.service.l1.abort(entry)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/quota/t", {}),
        ("/quota/t", {"limit_gb": -1}),
        ("/quota/t", {"limit_gb": "x"}),
        ("/quota/t", {"limit_gb": 1, "limt": 2}),
        ("/quota/t", {"limit_gb": 1, "l2_limit_gb": 1e9}),
        ("/quota/t%40", {"limit_gb": 1}),
        ("/quota/" + "t" * 129, {"limit_gb": 1}),
    ],
)
def test_what_is_no_quota_over_http(site: Site, path: str, body: dict[str, Any]) -> None:
    reply = site.http.put(path, json=body)
    assert reply.status_code == 400 and reply.json()["detail"]
