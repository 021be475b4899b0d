"""The state of a server as lines for people, from its `/status` and `/metrics`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sidecar.commands.counters import totals
from sidecar.commands.output import amount, columns

Json = Mapping[str, Any]
_PREFIX = "lmcache_mp_lookup_"


@dataclass(frozen=True)
class Hits:
    """Tokens that lookups have asked for since the start, and where they were found."""

    requested: float
    l1: float
    l2: float


def hits(metrics: str) -> Hits | None:
    """The counters in a scrape of `/metrics`; None before the first lookup, or without metrics.

    Raises ValueError for text that is no scrape.
    """
    found = totals(metrics)
    requested = found.get(f"{_PREFIX}requested_tokens_total")
    if not requested:
        return None
    tiers = [found.get(f"{_PREFIX}hit_{tier}_tokens_total", 0.0) for tier in ("l1", "l2")]
    return Hits(requested, *tiers)


def lines(status: Json, found: Hits | None) -> list[str]:
    """Of a document as `sidecar.admin.status` makes it."""
    return [
        *columns(
            [
                ("health", _health(status)),
                ("L1", _l1(status["storage_manager"]["l1_manager"])),
                *([("kept", _kept(status["kept"]))] if status["kept"]["seconds"] else []),
                *([("protected", _protected(status))] if status["protected"]["count"] else []),
                ("hits", _hits(found)),
                ("requests", _requests(status)),
                *([("refused", _refused(status))] if status["refusals"] else []),
            ]
        ),
        "",
        *_workers(status["workers"]),
        *_engines(status["engines"]),
        "",
        *_adapters(status["storage_manager"]["l2_adapters"]),
        *_tenants(status["tenants"]),
    ]


def _health(status: Json) -> str:
    server = status["server"]
    state = "healthy" if status["is_healthy"] else f"UNHEALTHY: {status['unhealthy_reason']}"
    up = duration(server["uptime_seconds"])
    return f"{state}, up {up}, {server['name']} {server['version']}"


def _l1(l1: Json) -> str:
    # Right after the start, and while /dev/shm is full.
    is_whole = l1["memory_populated_bytes"] >= l1["memory_total_bytes"]
    usable = "" if is_whole else f", {amount(l1['memory_populated_bytes'])} usable so far"
    return (
        f"{amount(l1['memory_used_bytes'])} of {amount(l1['memory_total_bytes'])} "
        f"({l1['memory_usage_ratio']:.0%}), {l1['total_object_count']:,} objects, "
        f"{l1['read_locked_count']} being read, {l1['write_locked_count']} being written{usable}"
    )


def _kept(kept: Json) -> str:
    if kept["failed"]:
        return f"not for the next server: {kept['failed']}"
    parts = [
        f"for the next server, for {duration(kept['seconds'])}",
        *(
            [f"{kept['undigested_objects']:,} objects without digest, lost if it is killed"]
            if kept["undigested_objects"]
            else []
        ),
        *(
            [f"{kept['unproven_objects']:,} objects of the last server still to be verified"]
            if kept["unproven_objects"]
            else []
        ),
        *(
            [f"{amount(kept['others_bytes'])} held by workers of the last server"]
            if kept["others_bytes"]
            else []
        ),
    ]
    return ", ".join(parts)


def _protected(status: Json) -> str:
    found = status["protected"]
    of_all = f"{amount(found['used_bytes'])} of {amount(found['limit_bytes'])}"
    return f"{of_all} at most, {found['count']} prompts"


def _hits(found: Hits | None) -> str:
    if found is None:
        return "no lookups yet, or no metrics"
    share = (found.l1 + found.l2) / found.requested
    return (
        f"{share:.1%} of {found.requested:,.0f} tokens looked up since the start "
        f"({found.l1 / found.requested:.1%} L1, {found.l2 / found.requested:.1%} L2)"
    )


def _requests(status: Json) -> str:
    return (
        f"{status['active_sessions']} open, {status['queue_depth']} copies queued, "
        f"{status['live_leases']} leases"
    )


def _refused(status: Json) -> str:
    by_count = sorted(status["refusals"].items(), key=lambda item: -item[1])
    return ", ".join(f"{count} {reason}" for reason, count in by_count)


def _tenants(tenants: Sequence[Json]) -> list[str]:
    """Those with a quota: what they have of it in each tier."""
    if not tenants:
        return []
    tiers = list(tenants[0]["tiers"])
    rows = [
        (tenant["name"], *(_quota(tenant["tiers"][tier]) for tier in tiers)) for tenant in tenants
    ]
    return ["", *columns([("TENANT", *(tier.upper() for tier in tiers)), *rows])]


def _quota(usage: Json) -> str:
    limit = usage["limit"]
    return amount(usage["used"]) + ("" if limit is None else f" of {amount(limit)}")


def _workers(workers: Sequence[Json]) -> list[str]:
    if not workers:
        return ["no workers"]
    head = ("WORKER", "MODEL", "RANKS", "MODE", "LMCACHE", "DEVICE", "LAST SEEN")
    return columns([head, *map(_worker, workers)])


def _worker(worker: Json) -> tuple[str, ...]:
    mode = "lmcache_driven" if worker["kind"] == "handle" else worker["kind"]
    seen = f"{duration(worker['last_seen_seconds'])} ago"
    return (
        str(worker["instance_id"]),
        worker["model_name"],
        str(worker["world_size"]),
        mode,
        worker["lmcache"],
        worker["device"],
        seen if worker["connected"] else f"{seen}, connection lost",
    )


def _engines(engines: Sequence[Json]) -> list[str]:
    """Those of the native door, if there are any."""
    head = ("ENGINE", "MODEL", "RANKS", "STATE", "RESERVED", "PINNED")
    return ["", *columns([head, *map(_engine, engines)])] if engines else []


def _engine(engine: Json) -> tuple[str, ...]:
    return (
        str(engine["session"]),
        engine["model_name"],
        str(engine["ranks"]),
        _engine_state(engine),
        amount(engine["reserved_bytes"]),
        amount(engine["pinned_bytes"]),
    )


def _engine_state(engine: Json) -> str:
    if engine["lost"]:
        return "gone"
    if not engine["connected"]:
        return "connection lost"
    if engine["ready"]:
        return "ready"
    return f"{len(engine['mapped_ranks'])} of {engine['ranks']} ranks have mapped the L1"


def _adapters(adapters: Sequence[Json]) -> list[str]:
    if not adapters:
        return ["no L2"]
    head = ("L2", "TYPE", "USED", "OBJECTS", "QUEUED", "LOADS", "STORES")
    return columns([head, *map(_adapter, adapters)])


def _adapter(adapter: Json) -> tuple[str, ...]:
    used, capacity = amount(adapter["used_bytes"]), adapter["capacity_bytes"]
    breakers = [_breaker(adapter["breakers"][kind]) for kind in ("load", "store")]
    return (
        adapter["name"],
        adapter["type"],
        f"{used} of {amount(capacity)}" if capacity else used,
        f"{adapter['stored_object_count']:,}" + ("" if adapter["scanned"] else ", scanning"),
        str(adapter["queued_stores"]),
        *breakers,
    )


def _breaker(breaker: Json) -> str:
    """A closed breaker lets everything through."""
    if breaker["state"] == "closed":
        return "ok"
    return f"cut off ({breaker['last_failure']})"


def duration(seconds: float) -> str:
    """The two largest units: 3d 4h, 5m 2s."""
    left = math.floor(seconds)
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        count, left = divmod(left, length)
        if count or parts or unit == "s":
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2])
